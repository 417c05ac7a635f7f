"""The training batches of an epoch: images, and VGG-19's features of them.

The images are crops of pictures, augmented, and images from style transfers by the student. L-BFGS
evaluates a network on images that look like no photograph, white noise first of all, and drives an
image to where the network is wrong. The student has most to learn on such images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pipeline.config.schema import Distillation
from pipeline.distillation.student import SMALL_LAYERS
from pipeline.losses.feature_terms.style import gram_matrix
from pipeline.networks.layers import LAYERS
from pipeline.networks.rescaling import rescaling_means
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
STRIDES = {1: 4, 2: 2}
"""{block: stride} of the subsampled positions; in the other blocks all positions are used."""


class Teacher(nn.Module):
    """VGG-19's features of the student's layers, each layer in units of its standard deviation.

    ``weights`` are VGG-19's, not rescaled, and ``precision`` is ``float32`` or ``bf16``. On the
    ``images``, (B, 3, S, S) float32, RGB in [0, 1], and in float32, ``deviations`` are measured,
    and ``means``: {layer: (N,)} what the rescaled network divides filters by.
    """

    def __init__(self, weights: Mapping[str, Tensor], images: Tensor, precision: str) -> None:
        super().__init__()
        self.network = Features(weights, "avg").to(images.device)
        self.deviations = dict.fromkeys(SMALL_LAYERS, 1.0)
        self.deviations = {name: each.std().item() for name, each in self(images).items()}
        means, _ = rescaling_means(self.network, torch.split(images, 1))
        self.means = {name: means[name] for name in SMALL_LAYERS}
        if precision == "bf16":
            self.network.bfloat16()
        self.network.to(memory_format=torch.channels_last)  # the faster layout of convolutions

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns {layer: (B, N, H', W')} features of (B, 3, S, S) float32 images, RGB."""
        features = self.network(images.to(self.network.get_buffer("mean").dtype), SMALL_LAYERS)
        return {name: each / self.deviations[name] for name, each in features.items()}


class TrainingBatch(NamedTuple):
    """Images (B, 3, S, S) float32, RGB, with the features that the student is to predict.

    ``targets`` are {layer: (B, N, h, w)}, the teacher's features at the positions that
    ``subsample`` picks; ``offset`` is the row and the column of the first.
    """

    images: Tensor
    targets: dict[str, Tensor]
    offset: Sequence[int]


@dataclass
class TrainingData:
    """Makes the batches of an epoch; the same ones for the same seed, epoch and student."""

    teacher: Teacher
    pictures: Sequence[Image.Image]
    settings: Distillation

    def epoch(self, number: int, weights: Mapping[str, Tensor]) -> Iterator[TrainingBatch]:
        """Yields the batches of an epoch, all of them ``passes`` times, each time shuffled.

        ``number`` counts epochs from 0; ``weights`` are the student's, as ``small_vgg`` takes them.
        """
        settings = self.settings
        sampler = CropSampler(self.pictures, settings.crop_size, (settings.seed, number))
        images = torch.split(self._images(number, weights, sampler), settings.batch_size)
        offsets = sampler.random.integers(max(STRIDES.values()), size=(len(images), 2)).tolist()
        batches = list(map(self.batch, images, offsets))
        for _ in range(settings.passes):
            for index in sampler.random.permutation(len(batches)):
                yield batches[index]

    def _images(self, number: int, weights: Mapping[str, Tensor], sampler: CropSampler) -> Tensor:
        """Returns the images of an epoch, shuffled, with some from the student's optimisations."""
        settings = self.settings
        count = round(settings.optimised * settings.images)
        runs = math.ceil(count / (BATCH * len(SNAPSHOTS)))
        images: list[Tensor] = []
        for _ in range(runs if number >= settings.plain_epochs else 0):
            images += optimised_images(weights, self.teacher.means, sampler)
        crops = sampler.crops(max(1, settings.images - sum(map(len, images))), augmented=True)
        mixed = torch.cat([*images, crops.to(weights["mean"].device)])
        return mixed[sampler.random.permutation(len(mixed))][: settings.images]

    def batch(self, images: Tensor, offset: Sequence[int] = (0, 0)) -> TrainingBatch:
        """Returns (B, 3, S, S) images, on the teacher's device, with the teacher's features."""
        features = self.teacher(images).items()
        targets = {name: subsample(each, name, offset).contiguous() for name, each in features}
        return TrainingBatch(images, targets, offset)


def subsample(features: Tensor, layer: str, offset: Sequence[int]) -> Tensor:
    """Returns (B, N, H', W') features at every so many rows and columns, as ``STRIDES`` says."""
    stride = STRIDES.get(LAYERS[layer].block, 1)
    return features[:, :, offset[0] % stride :: stride, offset[1] % stride :: stride]


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
