"""The gradients of ReLU and of 2×2 pooling, by hand.

Feature maps are (1, C, H', W') in channels-last memory; in place of ReLU's output there may be a
bool mask of where it is above 0.
"""

import torch
from torch import Tensor
from torch.nn import functional


def relu_backward(gradient: Tensor, maps: Tensor, out: Tensor) -> None:
    """Writes the gradient of ReLU's input to ``out``, which may be ``gradient`` itself."""
    if maps.dtype == torch.bool:
        torch.mul(gradient, maps.view(torch.uint8), out=out)
    else:
        torch.ops.aten.threshold_backward.grad_input(gradient, maps, 0, grad_input=out)


def pool(maps: Tensor, pooling: str) -> tuple[Tensor, Tensor | None]:
    """Returns maps of half the size, rounded down, and of max pooling the indices of the maxima."""
    if pooling == "max":
        smaller, indices = functional.max_pool2d(maps, 2, return_indices=True)
        return smaller, indices
    if maps.is_cuda:
        return _squares(maps).mean((2, 4)).permute(0, 3, 1, 2), None
    return functional.avg_pool2d(maps, 2), None


def pool_backward(gradient: Tensor, indices: Tensor | None, maps: Tensor) -> Tensor:
    """Returns the gradient of a pooling's input, of the shape of ``maps``, from its output's."""
    if indices is None:
        spread = functional.interpolate(gradient / 4, scale_factor=2, mode="nearest")
        odd = (0, maps.shape[-1] - spread.shape[-1], 0, maps.shape[-2] - spread.shape[-2])
        return functional.pad(spread, odd) if any(odd) else spread
    # What autograd calls. A scatter is as good, but in deterministic mode a GPU sorts for it.
    like = gradient.new_empty(maps.shape).contiguous(memory_format=torch.channels_last)
    return torch.ops.aten.max_pool2d_with_indices_backward(  # type: ignore[no-any-return]
        gradient, like, [2, 2], [2, 2], [0, 0], [1, 1], False, indices
    )


def pool_relu_backward(gradient: Tensor, indices: Tensor | None, maps: Tensor) -> Tensor:
    """Returns the gradient through a pooling and the ReLU before it; arguments as above."""
    if indices is None and maps.is_cuda:
        return average_pool_relu_backward(gradient, maps)
    spread = pool_backward(gradient, indices, maps)
    relu_backward(spread, maps, out=spread)
    return spread


def average_pool_relu_backward(gradient: Tensor, maps: Tensor) -> Tensor:
    """Returns ``pool_relu_backward`` of average pooling in one pass, which is faster on a GPU."""
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
