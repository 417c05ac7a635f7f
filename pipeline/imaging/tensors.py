"""Converts pictures to image tensors and back; resizes images, and makes white noise."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

Resampling = Literal["bicubic", "bilinear", "pillow-2.6"]
"""How a picture is resized. ``pillow-2.6`` is the bilinear filter of Pillow before version 2.7."""
Edge = Literal["long", "short"]
STRIP = 256
"""Rows that are converted to pixels of a file at a time."""


def to_tensor(picture: Image.Image) -> Tensor:
    """Returns an 8-bit RGB picture as (1, 3, H, W) float32, RGB in [0, 1], contiguous.

    One with alpha becomes (1, 4, H, W).
    """
    pixels = np.array(picture, dtype=np.float32)
    pixels /= 255
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).contiguous()


def to_picture(image: Tensor) -> Image.Image:
    """Returns a (1, 3, H, W) image as an 8-bit RGB picture, clamped to [0, 1] and rounded."""
    return Image.fromarray(to_pixels(image, 8))


def to_pixels(image: Tensor, bits: int) -> NDArray[Any]:
    """Returns a (1, C, H, W) image as (H, W, C) uint8 or uint16, clamped to [0, 1] and rounded."""
    _, channels, height, width = image.shape
    pixels = np.empty((height, width, channels), np.uint8 if bits == 8 else np.uint16)
    for top in range(0, height, STRIP):  # a large image is not copied as float32
        strip = _levels(image.detach()[0, :, top : top + STRIP], bits)
        whole = strip.to(torch.uint8 if bits == 8 else torch.int32)
        pixels[top : top + STRIP] = whole.permute(1, 2, 0).cpu().numpy()
    return pixels


def as_saved(image: Tensor, bits: int) -> Tensor:
    """Returns an image in [0, 1] with the values that a file of so many bits keeps of it."""
    return _levels(image.detach(), bits).div(2**bits - 1)


def _levels(image: Tensor, bits: int) -> Tensor:
    return image.clamp(0, 1).mul(2**bits - 1).round()


def scaled_size(size: tuple[int, int], edge: Edge, pixels: int | None) -> tuple[int, int]:
    """Returns the (H, W) whose long or short edge has ``pixels`` pixels, the other rounded down.

    ``pixels=None`` keeps the size. Proportions are kept, and no edge is shorter than one pixel.
    """
    if pixels is None:
        return size
    reference = max(size) if edge == "long" else min(size)
    height, width = (max(1, length * pixels // reference) for length in size)
    return height, width


def resize(image: Tensor, size: tuple[int, int], resampling: Resampling, antialias: bool) -> Tensor:
    """Returns a (1, 3, H, W) float32 image at ``size`` (H, W), clamped to [0, 1], contiguous.

    An image that already has the size is returned unchanged. ``pillow-2.6`` does not antialias.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    if resampling == "pillow-2.6":
        return _resize_as_pillow_2_6(image, size)
    # Each channel as an image: of several at a time, one thread rounds otherwise than more do.
    resized = functional.interpolate(
        image.transpose(0, 1), size=size, mode=resampling, antialias=antialias, align_corners=False
    )
    return resized.transpose(0, 1).clamp(0, 1).contiguous()


def _resize_as_pillow_2_6(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns an image at ``size`` (H, W) as the bilinear filter of Pillow before 2.7 made it.

    Output pixel x is the input at x·(W_in / W_out) − ½, interpolated between the two neighbours of
    that place, which are clamped to the image; rows likewise. The 8-bit result is truncated. No
    half pixel is added to x, so the image moves by up to half an output pixel to the right and
    down.
    """
    pixels = image.mul(255).round().double()  # a multiple of 1/255 is not exact in float32
    for axis, length in ((3, size[1]), (2, size[0])):
        given = pixels.shape[axis]
        places = torch.arange(length, dtype=torch.float64) * (given / length) - 0.5
        left = places.floor()
        share = (places - left).view([-1 if each == axis else 1 for each in range(4)])
        first, second = (
            pixels.index_select(axis, (left.long() + step).clamp(0, given - 1)) for step in (0, 1)
        )
        pixels = first + (second - first) * share
    return pixels.clamp(0, 255).floor().float().div(255).contiguous()


def to_size(image: Tensor, size: Sequence[int]) -> Tensor:
    """Returns a (1, 3, h, w) float32 image at ``size`` (H, W): bicubic, not clamped."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    resized = functional.interpolate(
        image,
        size=tuple(size),
        mode="bicubic",
        antialias=size[0] < image.shape[-2],
        align_corners=False,
    )
    return resized.contiguous()


def white_noise(size: tuple[int, int], seed: int, level: float) -> Tensor:
    """Returns a (1, 3, H, W) float32 image of uniform white noise (Gatys et al. 2016, §2.3).

    It is drawn on the CPU by its own generator, so a seed gives the same noise on every device.

    ``level`` is the width of the interval around mid-grey: 1 fills [0, 1), 0.1 fills [0.45, 0.55).
    """
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand((1, 3, *size), generator=generator)
    return 0.5 + level * (uniform - 0.5)
