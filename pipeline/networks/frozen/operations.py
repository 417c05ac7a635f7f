"""What is done with a layer's maps on the way forward and back, in as little memory as it takes.

Maps are (B, C, H', W') in channels-last memory: of B images that know nothing of each other.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.runtime.precision import cpu_has_bf16, has_cudnn

POSITIONS = 2**14
"""How many positions are gone through at a time on a CPU: what its cache holds."""
PART = 1024
"""How many are added up at a time where Gram matrices are products in bfloat16."""


def _by_position(maps: Tensor) -> Tensor:
    """Returns the (1, C, H', W') maps of one image as an (M, C) view."""
    return maps.permute(0, 2, 3, 1).view(-1, maps.shape[1])


def gram_matrices(maps: Tensor) -> Tensor:
    """Returns ``losses.gram_matrix`` of each image, (B, C, C).

    Image by image, as if each were alone: of so many positions and so few numbers that come of
    them a matrix product of several at once makes less.
    """
    return torch.stack([_gram_matrix(one) for one in torch.split(maps, 1)])


def _gram_matrix(maps: Tensor) -> Tensor:
    """Returns it of one image, part by part: no copy of all maps in float32."""
    positions = _by_position(maps)
    if maps.dtype == torch.bfloat16 and has_cudnn(maps):
        return torch.mm(positions.T, positions, out_dtype=torch.float32) / len(positions)
    if maps.dtype == torch.bfloat16 and maps.device.type == "cpu" and cpu_has_bf16():
        return _gram_in_two(positions)
    dtype = torch.promote_types(maps.dtype, torch.float32)
    found = positions.new_zeros((maps.shape[1], maps.shape[1]), dtype=dtype)
    count = POSITIONS if maps.device.type == "cpu" else len(positions)
    for begin in range(0, len(positions), count):
        part = positions[begin : begin + count].to(dtype)
        found.addmm_(part.T, part)
    return found / len(positions)


def _gram_in_two(positions: Tensor) -> Tensor:
    """Returns it of (M, C) values, to two millionths, without a product in float32.

    A processor that multiplies bfloat16 adds up in float32 and rounds once, at the end. So the sum
    less what it was rounded to can be had too: float32 takes four times as long. Sums of so many
    positions as ``PART`` are one thread's; larger ones may be shared out, and rounded otherwise.
    """
    whole = len(positions) // PART * PART
    parts = positions[:whole].view(whole // PART, PART, positions.shape[1])
    return (_summed_in_two(parts) + _summed_in_two(positions[None, whole:])) / len(positions)


def _summed_in_two(parts: Tensor) -> Tensor:
    """Returns the sum of the products of (N, M, C) values with themselves, (C, C) float32."""
    rough = torch.bmm(parts.mT, parts)
    rest = torch.baddbmm(rough, parts.mT, parts, beta=-1)
    return rough.sum(0, dtype=torch.float32) + rest.sum(0, dtype=torch.float32)


def add_gram_gradient(gradient: Tensor | None, of_grams: Tensor, maps: Tensor) -> Tensor:
    """Returns the gradient of maps, plus what comes to them from their Gram matrices."""
    symmetric = of_grams + of_grams.mT
    symmetric = (symmetric / (maps.shape[-2] * maps.shape[-1])).to(maps.dtype)
    found = torch.empty_like(maps) if gradient is None else gradient
    for into, one, matrix in zip(
        torch.split(found, 1), torch.split(maps, 1), symmetric, strict=True
    ):
        if gradient is None:
            torch.mm(_by_position(one), matrix, out=_by_position(into))
        else:
            _by_position(into).addmm_(_by_position(one), matrix)
    return found


def kept_for_relu(maps: Tensor, for_gram: bool) -> Tensor:
    """Returns what a layer's derivative needs: without a Gram matrix only where it is above 0.

    Maps of bfloat16 are kept as they are: half as large, they cost less time than a mask of them.
    """
    return maps if for_gram or maps.dtype == torch.bfloat16 else maps.to(torch.bool)


def through_relu(gradient: Tensor, maps: Tensor, out: Tensor) -> None:
    """Writes the gradient of what ReLU was given.

    Args:
        gradient: of what it let out.
        maps: what it let out, or where that is above 0.
        out: gets it; may be ``gradient`` itself.
    """
    if maps.dtype == torch.bool:
        torch.mul(gradient, maps.view(torch.uint8), out=out)
    else:
        torch.ops.aten.threshold_backward.grad_input(gradient, maps, 0, grad_input=out)


def pooled(maps: Tensor, pooling: str) -> tuple[Tensor, tuple[torch.Size, Tensor | None]]:
    """Returns maps of half the size, and what ``pooled_back`` wants to know."""
    if pooling == "avg" and maps.is_cuda:
        return _in_fours(maps).mean((2, 4)).permute(0, 3, 1, 2), (maps.shape, None)
    if pooling == "avg":
        return functional.avg_pool2d(maps, 2), (maps.shape, None)
    pooled, where = functional.max_pool2d(maps, 2, return_indices=True)
    return pooled, (maps.shape, where)


def pooled_back(gradient: Tensor, shape: torch.Size, where: Tensor | None) -> Tensor:
    """Returns the gradient of a pooling's input: spread over four, or given to the largest."""
    if where is None:
        spread = functional.interpolate(gradient / 4, scale_factor=2, mode="nearest")
        lacking = (0, shape[-1] - spread.shape[-1], 0, shape[-2] - spread.shape[-2])
        return functional.pad(spread, lacking) if any(lacking) else spread
    # What autograd calls; a scatter is as good, but in deterministic mode a GPU sorts for it.
    maps = gradient.new_empty(shape).contiguous(memory_format=torch.channels_last)
    return torch.ops.aten.max_pool2d_with_indices_backward(  # type: ignore[no-any-return]
        gradient, maps, [2, 2], [2, 2], [0, 0], [1, 1], False, where
    )


def pooled_back_through_relu(
    gradient: Tensor, shape: torch.Size, where: Tensor | None, maps: Tensor
) -> Tensor:
    """Returns ``through_relu`` of ``pooled_back``; on a GPU in one pass where it can be.

    Args:
        gradient, shape, where: as ``pooled_back`` takes them.
        maps: as ``through_relu`` takes them.
    """
    if where is not None or not maps.is_cuda:
        found = pooled_back(gradient, shape, where)
        through_relu(found, maps, out=found)
        return found
    return spread_through_relu(gradient, maps)


def spread_through_relu(gradient: Tensor, maps: Tensor) -> Tensor:
    """Returns ``pooled_back_through_relu`` of average pooling, in one pass on any device."""
    odd = maps.shape[2] % 2 or maps.shape[3] % 2
    found = torch.empty_like(maps, dtype=gradient.dtype, memory_format=torch.channels_last)
    if odd:
        found.zero_()
    quarter = (gradient / 4).permute(0, 2, 3, 1)[:, :, None, :, None]
    through_relu(quarter, _in_fours(maps), out=_in_fours(found))
    return found


def _in_fours(maps: Tensor) -> Tensor:
    """Returns maps as (B, H'/2, 2, W'/2, 2, C): a view, without an odd edge."""
    count, channels, height, width = maps.shape
    even = maps[..., : height // 2 * 2, : width // 2 * 2].permute(0, 2, 3, 1)
    return even.view(count, height // 2, 2, width // 2, 2, channels)
