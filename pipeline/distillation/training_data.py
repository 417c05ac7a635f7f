"""The training batches of an epoch: random images, and VGG-19's features of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.config.schema import Distillation
from pipeline.distillation import training_images
from pipeline.distillation.student import SMALL_LAYERS
from pipeline.distillation.training_images import CropSampler
from pipeline.networks.layers import LAYERS
from pipeline.networks.rescaling import rescaling_means
from pipeline.networks.vgg import Features

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
    offset: tuple[int, int]


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
        pairs = zip(images, offsets, strict=True)
        batches = [self.batch(each, (row, column)) for each, (row, column) in pairs]
        for _ in range(settings.passes):
            for index in sampler.random.permutation(len(batches)):
                yield batches[index]

    def _images(self, number: int, weights: Mapping[str, Tensor], sampler: CropSampler) -> Tensor:
        """Returns the images of an epoch, shuffled, with some from the student's optimisations."""
        settings = self.settings
        count = round(settings.optimised * settings.images)
        runs = math.ceil(count / (training_images.BATCH * len(training_images.SNAPSHOTS)))
        images: list[Tensor] = []
        for _ in range(runs if number >= settings.plain_epochs else 0):
            images += training_images.optimised_images(weights, self.teacher.means, sampler)
        crops = sampler.crops(max(1, settings.images - sum(map(len, images))), augmented=True)
        mixed = torch.cat([*images, crops.to(weights["mean"].device)])
        return mixed[sampler.random.permutation(len(mixed))][: settings.images]

    def batch(self, images: Tensor, offset: tuple[int, int] = (0, 0)) -> TrainingBatch:
        """Returns (B, 3, S, S) images, on the teacher's device, with the teacher's features."""
        features = self.teacher(images).items()
        targets = {name: subsample(each, name, offset).contiguous() for name, each in features}
        return TrainingBatch(images, targets, offset)


def subsample(features: Tensor, layer: str, offset: tuple[int, int]) -> Tensor:
    """Returns (B, N, H', W') features at every so many rows and columns, as ``STRIDES`` says."""
    stride = STRIDES.get(LAYERS[layer].block, 1)
    return features[:, :, offset[0] % stride :: stride, offset[1] % stride :: stride]
