"""Converts pictures to image tensors and back; resizes images, and makes white noise."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

Resampling = Literal["bicubic", "bilinear"]
Edge = Literal["long", "short"]


def to_tensor(picture: Image.Image) -> Tensor:
    """Returns an 8-bit RGB picture as (1, 3, H, W) float32, RGB in [0, 1], contiguous."""
    pixels = np.array(picture, dtype=np.float32)
    pixels /= 255
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).contiguous()


def to_picture(image: Tensor) -> Image.Image:
    """Returns a (1, 3, H, W) image as an 8-bit RGB picture, clamped to [0, 1] and rounded."""
    pixels = image.detach().squeeze(0).permute(1, 2, 0).clamp(0, 1).mul(255).round()
    return Image.fromarray(pixels.to(torch.uint8).cpu().numpy())


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

    An image that already has the size is returned unchanged.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    resized = functional.interpolate(
        image, size=size, mode=resampling, antialias=antialias, align_corners=False
    )
    return resized.clamp(0, 1).contiguous()


def enlarge(image: Tensor, size: Sequence[int]) -> Tensor:
    """Returns a (1, 3, h, w) float32 image enlarged to ``size`` (H, W): bicubic, not clamped."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    larger = functional.interpolate(image, size=tuple(size), mode="bicubic", align_corners=False)
    return larger.contiguous()


def white_noise(size: tuple[int, int], seed: int, level: float) -> Tensor:
    """Returns a (1, 3, H, W) float32 image of uniform white noise (Gatys et al. 2016, §2.3).

    It is drawn on the CPU by its own generator, so a seed gives the same noise on every device.

    ``level`` is the width of the interval around mid-grey: 1 fills [0, 1), 0.1 fills [0.45, 0.55).
    """
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand((1, 3, *size), generator=generator)
    return 0.5 + level * (uniform - 0.5)
