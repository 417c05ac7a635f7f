"""Gram matrices of feature maps, with a hand-written gradient."""

import torch
from torch import Tensor

from pipeline.runtime.precision import cpu_has_bf16, has_cudnn

CHUNK = 2**14
"""Positions per matrix product on a CPU: their values fit into its cache."""
BFLOAT16_CHUNK = 1024
"""Positions per matrix product in bfloat16. It runs on one thread; a larger product may be divided
among threads, and its rounding then depends on their number."""


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
        gram = positions.new_zeros((maps.shape[1], maps.shape[1]), dtype=dtype)
        count = CHUNK if maps.device.type == "cpu" else len(positions)
        for begin in range(0, len(positions), count):
            chunk = positions[begin : begin + count].to(dtype)
            gram.addmm_(chunk.T, chunk)
        return gram / len(positions)

    def pull_back(self, of_statistic: Tensor, gradient: Tensor | None, maps: Tensor) -> Tensor:
        symmetric = of_statistic + of_statistic.mT
        symmetric = (symmetric / (maps.shape[-2] * maps.shape[-1])).to(maps.dtype)
        if gradient is not None:
            _by_position(gradient).addmm_(_by_position(maps), symmetric)
            return gradient
        gradient = torch.empty_like(maps)
        torch.mm(_by_position(maps), symmetric, out=_by_position(gradient))
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
    whole = len(positions) // BFLOAT16_CHUNK * BFLOAT16_CHUNK
    chunks = positions[:whole].view(-1, BFLOAT16_CHUNK, positions.shape[1])
    return (_two_part_sum(chunks) + _two_part_sum(positions[None, whole:])) / len(positions)


def _two_part_sum(chunks: Tensor) -> Tensor:
    """Returns the sum over (N, M, C) chunks of the product of each with itself, (C, C) float32."""
    rounded = torch.bmm(chunks.mT, chunks)
    remainder = torch.baddbmm(rounded, chunks.mT, chunks, beta=-1)
    return rounded.sum(0, dtype=torch.float32) + remainder.sum(0, dtype=torch.float32)
