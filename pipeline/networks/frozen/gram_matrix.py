"""Gram matrices of feature maps, with a hand-written gradient.

With a guide t, a weight for each position k, G_ij = Σ_k t_k² F_ik F_jk / Σ_k t_k²: the guided Gram
matrix of Gatys et al. 2017, eq. 4 to 6. Without one, all positions count the same.
"""

import torch
from torch import Tensor

from pipeline.runtime.precision import cpu_has_bf16, has_cudnn
from pipeline.runtime.summation import TERMS, total

CHUNK = 2**14
"""Positions that a CPU takes at a time: their values fit into its cache."""
BFLOAT16_TERMS = 512
"""Positions per matrix product in bfloat16, each a term of the sums of ``runtime.summation``."""


class GramMatrix:
    """``losses.feature_terms.style.gram_matrix``, without a float32 copy of the maps."""

    needs_values = True

    def collect(self, maps: Tensor, guide: Tensor | None = None) -> Tensor:
        positions = _by_position(maps)
        if guide is not None:
            dtype = torch.promote_types(maps.dtype, torch.float32)
            weights = _position_weights(guide).to(dtype)
            return _exact_gram_matrix(positions, dtype, weights.sqrt())
        if maps.dtype == torch.bfloat16 and has_cudnn(maps):
            return torch.mm(positions.T, positions, out_dtype=torch.float32) / len(positions)
        if maps.dtype == torch.bfloat16 and maps.device.type == "cpu" and cpu_has_bf16():
            return _bfloat16_gram_matrix(positions)
        dtype = torch.promote_types(maps.dtype, torch.float32)
        return _exact_gram_matrix(positions, dtype) / len(positions)

    def pull_back(
        self,
        of_statistic: Tensor,
        gradient: Tensor | None,
        maps: Tensor,
        guide: Tensor | None = None,
    ) -> Tensor:
        symmetric, positions = of_statistic + of_statistic.mT, _by_position(maps)
        if guide is None:
            symmetric = symmetric / len(positions)
        else:
            positions = (positions * _position_weights(guide)).to(maps.dtype)
        symmetric = symmetric.to(maps.dtype)
        count = TERMS if maps.device.type == "cpu" else len(symmetric)
        factors = torch.split(positions, count, 1), torch.split(symmetric, count)
        for values, rows in zip(*factors, strict=True):
            if gradient is None:
                gradient = torch.empty_like(maps)
                torch.mm(values, rows, out=_by_position(gradient))
            else:
                _by_position(gradient).addmm_(values, rows)
        assert gradient is not None
        return gradient

    def apply_tap(self, value: Tensor, tap: Tensor) -> Tensor:
        return tap @ value @ tap.T

    def size(self, channels: int, positions: int) -> int:
        return channels**2


def _by_position(maps: Tensor) -> Tensor:
    """Returns (1, C, H', W') maps as an (M, C) view."""
    return maps.permute(0, 2, 3, 1).view(-1, maps.shape[1])


def _position_weights(guide: Tensor) -> Tensor:
    """Returns t_k² / Σ t² of a (1, 1, H', W') guide, as (M, 1)."""
    squares = guide.square().view(-1, 1)
    return squares / total(squares)


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
