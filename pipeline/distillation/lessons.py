"""What a student learns in an epoch: images, and VGG-19's activations on them.

Part of the images may come from the student's own optimisations. L-BFGS finds what a network gets
wrong and makes more of it; shown to VGG-19, these images are where the student has most to learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.distillation.crops import Crops
from pipeline.networks.layers import LAYERS
from pipeline.networks.small_vgg import tapped
from pipeline.networks.vgg import Features
from pipeline.optim.lbfgs import LBFGS

if TYPE_CHECKING:
    from pipeline.config.schema import Distillation

STRIDES = {1: 4, 2: 2}
"""Of the wide maps of blocks 1 and 2 one position in 16 and one in 4 is learned from."""
TOGETHER = 8
"""How many images are optimised as one."""
KEPT = (0.2, 0.5, 1.0)
"""Shares of an optimisation's steps after which its images are kept."""
CONTENT, STYLE = ("conv4_2",), ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1")


class Lesson(NamedTuple):
    """A batch of images and what VGG-19 says of them.

    Attributes:
        images: (B, 3, S, S) float32, RGB.
        targets: {layer: (B, N, h, w)}, VGG-19's activations in units of the layer, thinned.
        first: row and column at which the thinning begins.
    """

    images: Tensor
    targets: dict[str, Tensor]
    first: tuple[int, int]


class Lessons:
    """Makes the lessons of an epoch; the same ones for the same seed, epoch and student.

    Args:
        teacher: VGG-19, not rescaled; it computes in the type of its buffers.
        units: {layer: standard deviation of VGG-19's activations}.
        means: {layer: (N,)} what the rescaled network divides VGG-19's filters by.
        pictures: to crop from.
        settings: the section ``distillation`` of params.yaml.
    """

    def __init__(
        self,
        teacher: Features,
        units: Mapping[str, float],
        means: Mapping[str, Tensor],
        pictures: Sequence[Image.Image],
        settings: Distillation,
    ) -> None:
        self.teacher, self.units, self.means = teacher, units, means
        self.pictures, self.settings = pictures, settings

    def epoch(self, number: int, weights: Mapping[str, Tensor]) -> Iterator[Lesson]:
        """Yields the lessons of an epoch, ``passes`` times in another order each.

        Args:
            number: of the epoch, from 0.
            weights: the student's, as ``pipeline.networks.small_vgg`` takes them.
        """
        settings = self.settings
        crops = Crops(self.pictures, settings.crop_size, (settings.seed, number))
        device = weights["mean"].device
        count = 0
        if number >= settings.plain_epochs:
            count = round(settings.optimised * settings.images)
        images: list[Tensor] = []
        for _ in range(math.ceil(count / (TOGETHER * len(KEPT)))):
            images += optimised(weights, self.means, crops)
        images.append(crops.varied(max(1, settings.images - sum(map(len, images)))).to(device))
        mixed = torch.cat(images)[crops.random.permutation(sum(map(len, images)))]
        batches = torch.split(mixed[: settings.images], settings.batch_size)
        begin = crops.random.integers(max(STRIDES.values()), size=(len(batches), 2)).tolist()
        lessons = [
            self.lesson(batch, (row, column))
            for batch, (row, column) in zip(batches, begin, strict=True)
        ]
        for _ in range(settings.passes):
            for index in crops.random.permutation(len(lessons)):
                yield lessons[index]

    def lesson(self, images: Tensor, first: tuple[int, int]) -> Lesson:
        """Returns (B, 3, S, S) images with what the teacher says of them."""
        like = self.teacher.get_buffer("mean")
        with torch.no_grad():
            images = images.to(like.device)
            found = self.teacher(images.to(like.dtype), self.units)
        targets = {
            name: (thinned(maps, name, first) / self.units[name]).contiguous()
            for name, maps in found.items()
        }
        return Lesson(images, targets, first)


def thinned(maps: Tensor, layer: str, first: tuple[int, int]) -> Tensor:
    """Returns every so many positions of (B, N, H, W) maps, as ``STRIDES`` says."""
    stride = STRIDES.get(LAYERS[layer].block, 1)
    return maps[:, :, first[0] % stride :: stride, first[1] % stride :: stride]


def optimised(
    weights: Mapping[str, Tensor], means: Mapping[str, Tensor], crops: Crops
) -> list[Tensor]:
    """Returns images of one optimisation by the student, from its beginning to its end.

    ``TOGETHER`` problems of content, style, start and weights drawn at random are minimised as
    one. Each loss is relative to its target's norm, so that all of them matter.
    """
    random = crops.random
    features = Features(tapped(weights, means if random.random() < 0.5 else None), "avg")
    device = weights["mean"].device
    content_images = crops.plain(TOGETHER).to(device)
    style_images = crops.plain(TOGETHER).to(device)
    content_weight = _log_uniform(random, 1e-3, 1).to(device)
    style_weights = {name: _log_uniform(random, 0.3, 3).to(device) for name in STYLE}
    with torch.no_grad():
        contents = features(content_images, CONTENT)[CONTENT[0]]
        grams = {name: _grams(maps) for name, maps in features(style_images, STYLE).items()}

    def loss(images: Tensor) -> Tensor:
        found = features(images, [*CONTENT, *STYLE])
        total = (content_weight * _relative(found[CONTENT[0]], contents)).sum()
        for name in STYLE:
            total = (
                total + (style_weights[name] * _relative(_grams(found[name]), grams[name])).sum()
            )
        return total

    start = content_images.clone()
    for index in range(TOGETHER):
        kind = random.random()
        if kind < 0.4:
            start[index] = torch.from_numpy(crops.noise())
        elif kind < 0.5:
            start[index] = style_images[index]
    steps = int(random.choice([20, 40, 80]))
    return _path(loss, start, steps)


def _path(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> list[Tensor]:
    """Returns the images of an L-BFGS run after ``KEPT`` of its steps, where they are finite."""
    scale = 1 / (1e-3 * start.numel())  # as in ``module.StyleTransfer``
    pixels = ((start - 0.5) * scale).requires_grad_()
    optimizer: Any = LBFGS(
        pixels, 0.1 * scale, history_size=10, tolerance_grad=0, tolerance_change=0
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(pixels / scale + 0.5)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    kept = []
    for step in range(1, steps + 1):
        optimizer.step(closure)
        if step in [round(share * steps) for share in KEPT]:
            kept.append(pixels.detach() / scale + 0.5)
    return [images for images in kept if images.isfinite().all()]


def _log_uniform(random: np.random.Generator, low: float, high: float) -> Tensor:
    return torch.from_numpy(np.exp(random.uniform(np.log(low), np.log(high), TOGETHER))).float()


def _grams(maps: Tensor) -> Tensor:
    flat = maps.flatten(start_dim=2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def _relative(found: Tensor, target: Tensor) -> Tensor:
    """Returns the (B,) squared differences over the targets' squares."""
    differences = (found - target).flatten(1).square().sum(1)
    return differences / target.flatten(1).square().sum(1)
