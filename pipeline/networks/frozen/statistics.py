"""The statistics of a layer that losses compare: its features and its Gram matrix.

Feature maps are (1, C, H', W') activations after ReLU, in channels-last memory.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pipeline.runtime.precision import cpu_has_bf16, has_cudnn

Statistics = dict[str, dict[str, Tensor]]
"""{kind of statistic: {layer: its value}}."""

CHUNK = 2**14
"""Positions per matrix product on a CPU: their values fit into its cache."""
BFLOAT16_CHUNK = 1024
"""Positions per matrix product in bfloat16. It runs on one thread; a larger product may be divided
among threads, and its rounding then depends on their number."""


class Statistic(Protocol):
    """A kind of statistic with a hand-written gradient; enter new ones in ``STATISTICS``."""

    needs_values: bool
    """Whether the gradient needs the feature maps, and not only where they are above 0."""

    def collect(self, maps: Tensor) -> Tensor:
        """Returns the statistic of feature maps, float32 for maps of lower precision."""

    def pull_back(self, of_statistic: Tensor, gradient: Tensor | None, maps: Tensor) -> Tensor:
        """Adds the statistic's gradient to that of the maps so far, in place; None stands for 0.

        ``maps`` are the feature maps, or a bool mask of where they are above 0.
        """

    def apply_tap(self, value: Tensor, tap: Tensor) -> Tensor:
        """Returns the statistic of T F from that of F, where T is a small network's (C, C) tap."""

    def size(self, channels: int, positions: int) -> int:
        """Returns the number of values of the statistic."""


class Features:
    """The feature maps F themselves."""

    needs_values = False

    def collect(self, maps: Tensor) -> Tensor:
        return maps.to(torch.promote_types(maps.dtype, torch.float32), copy=True)

    def pull_back(self, of_statistic: Tensor, gradient: Tensor | None, maps: Tensor) -> Tensor:
        # Only a network that computes in the image's dtype keeps masks.
        dtype = of_statistic.dtype if maps.dtype == torch.bool else maps.dtype
        added = of_statistic.to(dtype, copy=True, memory_format=torch.channels_last)
        return added if gradient is None else gradient.add_(added)

    def apply_tap(self, value: Tensor, tap: Tensor) -> Tensor:
        # Not as a convolution, which a GPU might round to TF32.
        product: Tensor = tap @ value.flatten(start_dim=2)
        return product.view(1, -1, *value.shape[2:])

    def size(self, channels: int, positions: int) -> int:
        return channels * positions


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


STATISTICS: dict[str, Statistic] = {"features": Features(), "gram_matrix": GramMatrix()}
"""By kind, in the order in which the gradients of a layer are added up."""


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
