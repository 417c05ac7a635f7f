"""Gram matrices of feature maps, with a hand-written gradient.

With weights w_k of the positions k, which add up to 1, G_ij = Σ_k w_k F_ik F_jk: the guided Gram
matrix of Gatys et al. 2017, eq. 4 to 6, where w_k = t_k² / Σ t². Without them, w_k = 1/M. This is
``losses.feature_terms.style.gram_matrix`` without a float32 copy of the maps.
"""

import torch
from torch import Tensor

from pipeline.runtime.precision import cpu_has_bf16, has_cudnn
from pipeline.runtime.summation import TERMS

CHUNK = 2**14
"""Positions that a CPU takes at a time: their values fit into its cache."""
BFLOAT16_TERMS = 512
"""Positions per matrix product in bfloat16, each a term of the sums of ``runtime.summation``."""


def gram_matrix_of(maps: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns the (C, C) Gram matrix of (1, C, H', W') maps, float32 for those of lower precision.

    The weights of the positions, (1, 1, H', W'), take the place of 1/M.
    """
    positions = by_position(maps)
    if weights is not None:
        dtype = torch.promote_types(maps.dtype, torch.float32)
        return _exact_gram_matrix(positions, dtype, by_position(weights).to(dtype).sqrt())
    if maps.dtype == torch.bfloat16 and has_cudnn(maps):
        return torch.mm(positions.T, positions, out_dtype=torch.float32) / len(positions)
    if maps.dtype == torch.bfloat16 and maps.device.type == "cpu" and cpu_has_bf16():
        return _bfloat16_gram_matrix(positions)
    dtype = torch.promote_types(maps.dtype, torch.float32)
    return _exact_gram_matrix(positions, dtype) / len(positions)


def add_gram_matrix_gradient(
    of_gram: Tensor, gradient: Tensor | None, maps: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Adds the gradient of ``gram_matrix_of`` to that of the maps, in place; None stands for 0."""
    symmetric, positions = of_gram + of_gram.mT, by_position(maps)
    if weights is None:
        symmetric = symmetric / len(positions)
    else:
        positions = (positions * by_position(weights)).to(maps.dtype)
    symmetric = symmetric.to(maps.dtype)
    count = TERMS if maps.device.type == "cpu" else len(symmetric)
    factors = torch.split(positions, count, 1), torch.split(symmetric, count)
    for values, rows in zip(*factors, strict=True):
        if gradient is None:
            gradient = torch.empty_like(maps)
            torch.mm(values, rows, out=by_position(gradient))
        else:
            by_position(gradient).addmm_(values, rows)
    assert gradient is not None
    return gradient


def mean_of(maps: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns the (C, 1) means of the filters of (1, C, H', W') maps; arguments as above."""
    positions = by_position(maps)
    dtype = torch.promote_types(maps.dtype, torch.float32)
    factors = None if weights is None else by_position(weights).to(dtype)
    chunk_size = CHUNK if maps.device.type == "cpu" else len(positions)
    sums = positions.new_zeros(positions.shape[1], dtype=dtype)
    for start in range(0, len(positions), chunk_size):
        chunk = positions[start : start + chunk_size].to(dtype)
        if factors is not None:
            chunk = chunk * factors[start : start + chunk_size]
        for parts in _parts(chunk, TERMS):
            sums += parts.sum(1).sum(0)
    return (sums if weights is not None else sums / len(positions)).view(-1, 1)


def by_position(maps: Tensor) -> Tensor:
    """Returns (1, C, H', W') maps as (M, C), a view of them if their memory is channels-last."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def _exact_gram_matrix(
    positions: Tensor, dtype: torch.dtype, factors: Tensor | None = None
) -> Tensor:
    """Returns Fᵀ F of (M, C) values, computed in a dtype, each row times its factor, (M, 1)."""
    if positions.device.type != "cpu":
        exact = positions.to(dtype)
        exact = exact if factors is None else exact * factors
        return exact.T @ exact
    gram = positions.new_zeros((positions.shape[1], positions.shape[1]), dtype=dtype)
    for start in range(0, len(positions), CHUNK):
        chunk = positions[start : start + CHUNK].to(dtype)
        if factors is not None:
            chunk = chunk * factors[start : start + CHUNK]
        for parts in _parts(chunk, TERMS):
            if len(parts) == 1:
                # MKL divides the sums of one small product among 8 threads, but not those of two.
                parts = torch.cat([parts, torch.zeros_like(parts)])
            gram += torch.bmm(parts.mT, parts).sum(0)
    return gram


def _bfloat16_gram_matrix(positions: Tensor) -> Tensor:
    """Returns the float32 Gram matrix of (M, C) bfloat16 values, to two millionths.

    A product in float32 would take four times as long. A processor that multiplies bfloat16 adds
    the products up in float32 and rounds the sum once. A second product, from which the rounded
    sum is subtracted before the rounding, yields what was rounded away.
    """
    whole, rest = _parts(positions, BFLOAT16_TERMS)
    return (_two_part_sum(whole) + _two_part_sum(rest)) / len(positions)


def _parts(positions: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns (M, C) values as (M // count, count, C), and the rest as (1, M % count, C)."""
    whole = len(positions) // count * count
    return positions[:whole].view(-1, count, positions.shape[1]), positions[None, whole:]


def _two_part_sum(chunks: Tensor) -> Tensor:
    """Returns the sum over (N, M, C) chunks of the product of each with itself, (C, C) float32."""
    rounded = torch.bmm(chunks.mT, chunks)
    remainder = torch.baddbmm(rounded, chunks.mT, chunks, beta=-1)
    return rounded.sum(0, dtype=torch.float32) + remainder.sum(0, dtype=torch.float32)
