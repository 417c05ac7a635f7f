"""Gram matrices of feature maps, with a hand-written gradient."""

import torch
from torch import Tensor

from pipeline.runtime.precision import cpu_has_bf16, has_cudnn
from pipeline.runtime.summation import TERMS

CHUNK = 2**14
"""Positions that a CPU takes at a time: their values fit into its cache."""
BFLOAT16_TERMS = 512
"""Positions per matrix product in bfloat16, each a term of the sums of ``runtime.summation``."""


class GramMatrix:
    """``pipeline.losses.style.gram_matrix``, without a float32 copy of the maps."""

    needs_values = True

    def collect(self, maps: Tensor) -> Tensor:
        positions = _by_position(maps)
        if maps.dtype == torch.bfloat16 and has_cudnn(maps):
            return torch.mm(positions.T, positions, out_dtype=torch.float32) / len(positions)
        if maps.dtype == torch.bfloat16 and maps.device.type == "cpu" and cpu_has_bf16():
            return _bfloat16_gram_matrix(positions)
        dtype = torch.promote_types(maps.dtype, torch.float32)
        if maps.device.type != "cpu":
            exact = positions.to(dtype)
            return exact.T @ exact / len(positions)
        gram = positions.new_zeros((maps.shape[1], maps.shape[1]), dtype=dtype)
        for chunk in torch.split(positions, CHUNK):
            for parts in _parts(chunk.to(dtype), TERMS):
                gram += torch.bmm(parts.mT, parts).sum(0)
        return gram / len(positions)

    def pull_back(self, of_statistic: Tensor, gradient: Tensor | None, maps: Tensor) -> Tensor:
        symmetric = of_statistic + of_statistic.mT
        symmetric = (symmetric / (maps.shape[-2] * maps.shape[-1])).to(maps.dtype)
        count = TERMS if maps.device.type == "cpu" else len(symmetric)
        factors = torch.split(_by_position(maps), count, 1), torch.split(symmetric, count)
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
