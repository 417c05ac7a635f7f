"""ReLU and 2×2 pooling with hand-written gradients.

Maps are (1, C, H', W') in channels-last memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Pooled(NamedTuple):
    """What the gradient of a pooling needs.

    Attributes:
        shape: of the pooling's input.
        indices: of the largest value of each 2×2 square, int64; None for average pooling.
    """

    shape: torch.Size
    indices: Tensor | None


def relu_backward(gradient: Tensor, maps: Tensor, out: Tensor) -> None:
    """Writes the gradient of ReLU's input: ``gradient`` where the output was above 0, else 0.

    Args:
        gradient: of ReLU's output.
        maps: ReLU's output, or a bool mask of where it is above 0.
        out: where to write; may be ``gradient`` itself.
    """
    if maps.dtype == torch.bool:
        torch.mul(gradient, maps.view(torch.uint8), out=out)
    else:
        torch.ops.aten.threshold_backward.grad_input(gradient, maps, 0, grad_input=out)


def pool(maps: Tensor, pooling: str) -> tuple[Tensor, Pooled]:
    """Returns maps of half the size, rounded down, and what ``pool_backward`` needs.

    Args:
        maps: (1, C, H', W').
        pooling: ``avg`` or ``max``.
    """
    if pooling == "avg" and maps.is_cuda:
        return _squares(maps).mean((2, 4)).permute(0, 3, 1, 2), Pooled(maps.shape, None)
    if pooling == "avg":
        return functional.avg_pool2d(maps, 2), Pooled(maps.shape, None)
    smaller, indices = functional.max_pool2d(maps, 2, return_indices=True)
    return smaller, Pooled(maps.shape, indices)


def pool_backward(gradient: Tensor, pooled: Pooled) -> Tensor:
    """Returns the gradient of a pooling's input: a quarter for each, or all for the largest."""
    shape, indices = pooled
    if indices is None:
        spread = functional.interpolate(gradient / 4, scale_factor=2, mode="nearest")
        odd_edge = (0, shape[-1] - spread.shape[-1], 0, shape[-2] - spread.shape[-2])
        return functional.pad(spread, odd_edge) if any(odd_edge) else spread
    # What autograd calls. A scatter is as good, but in deterministic mode a GPU sorts for it.
    maps = gradient.new_empty(shape).contiguous(memory_format=torch.channels_last)
    return torch.ops.aten.max_pool2d_with_indices_backward(  # type: ignore[no-any-return]
        gradient, maps, [2, 2], [2, 2], [0, 0], [1, 1], False, indices
    )


def pool_relu_backward(gradient: Tensor, pooled: Pooled, maps: Tensor) -> Tensor:
    """Returns the gradient through a pooling and the ReLU before it.

    Args:
        gradient: of the pooling's output.
        pooled: from ``pool``.
        maps: as ``relu_backward`` takes them.
    """
    if pooled.indices is None and maps.is_cuda:
        return average_pool_relu_backward(gradient, maps)
    spread = pool_backward(gradient, pooled)
    relu_backward(spread, maps, out=spread)
    return spread


def average_pool_relu_backward(gradient: Tensor, maps: Tensor) -> Tensor:
    """Returns ``pool_relu_backward`` of average pooling in one pass, which a GPU profits from."""
    spread = torch.empty_like(maps, dtype=gradient.dtype, memory_format=torch.channels_last)
    if maps.shape[2] % 2 or maps.shape[3] % 2:
        spread.zero_()
    quarter = (gradient / 4).permute(0, 2, 3, 1)[:, :, None, :, None]
    relu_backward(quarter, _squares(maps), out=_squares(spread))
    return spread


def _squares(maps: Tensor) -> Tensor:
    """Returns maps as a (1, H'/2, 2, W'/2, 2, C) view, without an odd edge."""
    count, channels, height, width = maps.shape
    even = maps[..., : height // 2 * 2, : width // 2 * 2].permute(0, 2, 3, 1)
    return even.view(count, height // 2, 2, width // 2, 2, channels)
