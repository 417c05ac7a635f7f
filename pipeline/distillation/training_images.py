"""Training images: crops of pictures, augmented, and images from style transfers by the student.

L-BFGS evaluates a network on images that look like no photograph, white noise first of all, and
drives an image to where the network is wrong. The student has most to learn on such images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.losses.style import gram_matrix
from pipeline.networks.small_vgg import tapped
from pipeline.networks.vgg import Features
from pipeline.optim.image_variable import to_image, to_variable, variable_scale
from pipeline.optim.lbfgs import LBFGS

Pixels = NDArray[Any]
"""A (3, size, size) image of floating point numbers, RGB."""

SMALLEST_SCALE, LARGEST_SCALE = 0.35, 1.3
"""Range of the factors by which a picture is reduced or enlarged before it is cropped."""
BATCH = 8
"""How many style transfers are optimised together, as one problem."""
SNAPSHOTS = (0.2, 0.5, 1.0)
"""Fractions of an optimisation's steps after which its images are returned."""
FIRST_STEP, LARGEST_STEP = 1e-3, 0.1
"""Mean distances that the first step moves a pixel, and that any step may; RGB in [0, 1]."""
CONTENT_LAYER = "conv4_2"
STYLE_LAYERS = ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1")


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


def optimised_images(
    weights: Mapping[str, Tensor], means: Mapping[str, Tensor], sampler: CropSampler
) -> list[Tensor]:
    """Returns the images of eight style transfers by the student, after each of ``SNAPSHOTS``.

    They are (8, 3, S, S) float32, RGB, not clamped; those with NaN or infinity are left out.
    ``sampler`` and its generator draw content, style, start and loss weights of each, and whether
    the network is rescaled by ``means``, {layer: (N,)} mean activations of VGG-19's filters. The
    sum of all losses is minimised. Each is divided by the squared norm of its target, so that none
    dominates.
    """
    random = sampler.random
    network = Features(tapped(weights, means if random.random() < 0.5 else None), "avg")
    device = weights["mean"].device
    content_images = sampler.crops(BATCH).to(device)
    style_images = sampler.crops(BATCH).to(device)
    ranges = [(1e-3, 1.0)] + [(0.3, 3.0)] * len(STYLE_LAYERS)
    draws = [np.exp(random.uniform(np.log(low), np.log(high), BATCH)) for low, high in ranges]
    loss_weights = [torch.from_numpy(each).float().to(device) for each in draws]
    with torch.no_grad():
        contents, styles = (_statistics(network, each) for each in (content_images, style_images))
        targets = [contents[0], *styles[1:]]

    def loss(images: Tensor) -> Tensor:
        terms = zip(loss_weights, _statistics(network, images), targets, strict=True)
        errors = [w @ _relative_errors(value, target) for w, value, target in terms]
        return torch.stack(errors).sum()

    start = content_images.clone()
    for index in range(BATCH):
        kind = random.random()
        if kind < 0.4:
            start[index] = torch.from_numpy(sampler.noise())
        elif kind < 0.5:
            start[index] = style_images[index]
    return _minimise(loss, start, steps=int(random.choice([20, 40, 80])))


def _statistics(network: Features, images: Tensor) -> list[Tensor]:
    """Returns the features of the content layer and the Gram matrices of the style layers."""
    features = network(images, [CONTENT_LAYER, *STYLE_LAYERS])
    batches = [torch.split(features[name], 1) for name in STYLE_LAYERS]
    return [features[CONTENT_LAYER], *(torch.stack([*map(gram_matrix, b)]) for b in batches)]


def _relative_errors(values: Tensor, targets: Tensor) -> Tensor:
    """Returns the (B,) squared norms of the differences over those of the targets."""
    squares = (values - targets).square().flatten(1).sum(1)
    return squares / targets.square().flatten(1).sum(1)


def _minimise(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> list[Tensor]:
    """Returns the images of an L-BFGS run after each of ``SNAPSHOTS``, where they are finite."""
    scale = variable_scale(start, FIRST_STEP)
    variable = to_variable(start, scale).requires_grad_()
    optimizer = LBFGS(variable, LARGEST_STEP * scale, history_size=10)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(to_image(variable, scale))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    snapshots = []
    for step in range(1, steps + 1):
        optimizer.step(closure)
        if step in [round(fraction * steps) for fraction in SNAPSHOTS]:
            snapshots.append(to_image(variable.detach(), scale))
    return [images for images in snapshots if images.isfinite().all()]
