"""What a small network is trained on: random crops of pictures, varied beyond what pictures show.

L-BFGS asks the network about images that no photograph looks like, noise first of all; a network
that never saw such images is wrong there, and the optimiser goes where it is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Pixels = NDArray[np.float32]

SMALLEST_SCALE, LARGEST_SCALE = 0.35, 1.3
"""How far a picture may be reduced or enlarged before it is cropped."""


class Crops:
    """Draws (count, 3, size, size) float32 batches, RGB; the same ones for the same seed.

    Args:
        pictures: 8-bit RGB, at least one; a small one is enlarged to ``size``.
        size: edge of a crop, in pixels.
        seed: any number of integers.
    """

    def __init__(self, pictures: Sequence[Image.Image], size: int, seed: Sequence[int]) -> None:
        self.pictures, self.size = pictures, size
        self.random = np.random.default_rng(seed)

    def plain(self, count: int) -> Tensor:
        """Returns crops at random scales, flipped, transposed, some with their colours permuted.

        RGB in [0, 1].
        """
        return _batch([self._plain() for _ in range(count)])

    def varied(self, count: int) -> Tensor:
        """Returns crops of which half have another contrast, noise, or a second crop mixed in.

        RGB around [0, 1] and not clamped, as the image is during an optimisation.
        """
        return _batch([self._varied() for _ in range(count)])

    def noise(self) -> Pixels:
        """Returns a (3, size, size) image of uniform noise around mid-grey, of a random level."""
        level = np.exp(self.random.uniform(np.log(0.05), 0))
        uniform = self.random.random((3, self.size, self.size), dtype=np.float32)
        return _as_float32(0.5 + level * (uniform - 0.5))

    def _plain(self) -> Pixels:
        picture = self.pictures[int(self.random.integers(len(self.pictures)))]
        short = min(picture.size)
        smallest = min(max(SMALLEST_SCALE, self.size / short), LARGEST_SCALE)
        scale = np.exp(self.random.uniform(np.log(smallest), np.log(LARGEST_SCALE)))
        edge = min(self.size / scale, short)
        left = self.random.uniform(0, picture.width - edge)
        top = self.random.uniform(0, picture.height - edge)
        box = (left, top, left + edge, top + edge)
        crop = picture.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
        pixels: NDArray[Any] = np.asarray(crop, dtype=np.float32).transpose(2, 0, 1) / 255
        if self._chance(0.5):
            pixels = pixels[:, :, ::-1]
        if self._chance(0.5):
            pixels = pixels.transpose(0, 2, 1)
        if self._chance(0.15):
            pixels = pixels[self.random.permutation(3)]
        return _as_float32(pixels)

    def _varied(self) -> Pixels:
        pixels: NDArray[Any] = self._plain()
        if self._chance(0.2):
            mean = pixels.mean(axis=(1, 2), keepdims=True)
            contrast, brightness = self.random.uniform(0.3, 1.5), self.random.normal(0, 0.1)
            pixels = (pixels - mean) * contrast + mean + brightness
        kind = self.random.random()
        if kind < 0.3:
            deviation = self.random.uniform(0, 0.25)
            pixels = pixels + deviation * self.random.standard_normal(pixels.shape)
        elif kind < 0.4:
            share = self.random.random()
            pixels = share * pixels + (1 - share) * self._plain()
        elif kind < 0.45:
            pixels = self.noise()
        return _as_float32(pixels)

    def _chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)


def _as_float32(pixels: NDArray[Any]) -> Pixels:
    return np.ascontiguousarray(pixels, dtype=np.float32)


def _batch(crops: list[Pixels]) -> Tensor:
    return torch.from_numpy(np.stack(crops))
