"""Random training images: crops of pictures, augmented beyond what photographs show.

L-BFGS evaluates a network on images that look like no photograph, white noise first of all. A
network trained on photographs alone is wrong on them, and the optimiser exploits its errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Pixels = NDArray[Any]
"""A (3, size, size) image of floating point numbers, RGB."""

SMALLEST_SCALE, LARGEST_SCALE = 0.35, 1.3
"""Range of the factors by which a picture is reduced or enlarged before it is cropped."""


class CropSampler:
    """Draws square images of ``size`` pixels at random; the same ones for the same seed.

    ``pictures`` are 8-bit RGB, at least one; small ones are enlarged.
    """

    def __init__(self, pictures: Sequence[Image.Image], size: int, seed: Sequence[int]) -> None:
        self.pictures, self.size = pictures, size
        self.random = np.random.default_rng(seed)

    def crops(self, count: int, augmented: bool = False) -> Tensor:
        """Returns (count, 3, size, size) float32 crops at random scales, RGB in [0, 1].

        Half of them are mirrored, half are transposed, 15 % have their colour channels permuted.
        Of ``augmented`` ones half get another contrast, Gaussian noise, a second crop blended in,
        or are replaced by uniform noise. They are not clamped, as an optimised image is not.
        """
        crop = self._augmented_crop if augmented else self._crop
        return torch.from_numpy(np.stack([crop() for _ in range(count)], dtype=np.float32))

    def noise(self) -> Pixels:
        """Returns an image of uniform noise around mid-grey, of a random level."""
        level: float = np.exp(self.random.uniform(np.log(0.05), 0))
        uniform = self.random.random((3, self.size, self.size), dtype=np.float32)
        return 0.5 + level * (uniform - 0.5)

    def _crop(self) -> Pixels:
        picture = self.pictures[int(self.random.integers(len(self.pictures)))]
        short = min(picture.size)
        smallest = min(max(SMALLEST_SCALE, self.size / short), LARGEST_SCALE)
        scale = np.exp(self.random.uniform(np.log(smallest), np.log(LARGEST_SCALE)))
        edge = min(self.size / scale, short)
        left = self.random.uniform(0, picture.width - edge)
        top = self.random.uniform(0, picture.height - edge)
        box = (left, top, left + edge, top + edge)
        crop = picture.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
        pixels: Pixels = np.asarray(crop, dtype=np.float32).transpose(2, 0, 1) / 255
        if self.random.random() < 0.5:
            pixels = pixels[:, :, ::-1]
        if self.random.random() < 0.5:
            pixels = pixels.transpose(0, 2, 1)
        if self.random.random() < 0.15:
            pixels = pixels[self.random.permutation(3)]
        return pixels

    def _augmented_crop(self) -> Pixels:
        pixels = self._crop()
        if self.random.random() < 0.2:
            mean = pixels.mean(axis=(1, 2), keepdims=True)
            contrast, brightness = self.random.uniform(0.3, 1.5), self.random.normal(0, 0.1)
            pixels = (pixels - mean) * contrast + mean + brightness
        kind = self.random.random()
        if kind < 0.3:
            deviation = self.random.uniform(0, 0.25)
            return pixels + deviation * self.random.standard_normal(pixels.shape)
        if kind < 0.4:
            share = self.random.random()
            return share * pixels + (1 - share) * self._crop()
        return self.noise() if kind < 0.45 else pixels
