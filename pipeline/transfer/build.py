"""What an experiment asks for, as tensors: its pictures, its start, its objective on a device."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pipeline import paths
from pipeline.config.schema import Experiment
from pipeline.imaging.picture_files import read_picture
from pipeline.imaging.tensors import resize, scaled_size, to_tensor, white_noise
from pipeline.losses.objective import Objective
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.vgg import down_to
from pipeline.networks.weight_files import load_backbone
from pipeline.runtime.precision import Precision
from pipeline.transfer.module import RunState, StyleTransfer

DAMPING = 0.1
"""What the second try after a divergence multiplies the lengths of its steps by."""


class Inputs(NamedTuple):
    """The pictures of a run as tensors: (1, 3, H, W) float32, RGB in [0, 1]."""

    content_image: Tensor
    style_image: Tensor
    start: Tensor


def read_inputs(settings: Experiment, division: int = 1) -> Inputs:
    """Returns the pictures of an experiment, resized as it asks, and the image to start from.

    Args:
        settings: of the experiment.
        division: of every edge, for a coarse stage.
    """
    size, style_size = sizes(settings, division)
    how = settings.resampling, settings.antialias
    content = resize(to_tensor(read_picture(paths.picture(settings.content))), size, *how)
    style = resize(to_tensor(read_picture(paths.picture(settings.style))), style_size, *how)
    if settings.init == "content":
        return Inputs(content, style, content)
    if settings.init == "style":
        return Inputs(content, style, resize(style, size, *how))
    return Inputs(content, style, white_noise(size, settings.seed, settings.noise_level))


def sizes(settings: Experiment, division: int = 1) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the (H, W) of the content image and of the style image, as an experiment asks.

    Args:
        settings: of the experiment.
        division: divisor of every edge, rounded down, for a coarse phase.
    """
    size = _size(settings.content, settings, division)
    own = settings.style_resize == "own"
    return size, _size(settings.style, settings, division) if own else size


def picture_size(name: str) -> tuple[int, int]:
    """Returns the (H, W) of a picture, by its name in the catalogue."""
    with Image.open(paths.picture(name)) as picture:
        return picture.height, picture.width


def _size(name: str, settings: Experiment, division: int) -> tuple[int, int]:
    height, width = scaled_size(picture_size(name), settings.size_edge, settings.size)
    return max(1, height // division), max(1, width // division)


def build_objective(
    settings: Experiment, network: Path, inputs: Inputs, device: torch.device, precision: Precision
) -> Objective:
    """Returns what a prepared network asks of the image, with its targets on the device.

    Args:
        settings: of the experiment.
        network: the file of weights that the stage backbone wrote.
        inputs: the experiment's pictures.
        device, precision: where the network computes, and in what.
    """
    features = load_features(settings, network, device, precision)
    return objective_by(features, settings, inputs)


def load_features(
    settings: Experiment, network: Path, device: torch.device, precision: Precision
) -> FrozenFeatures:
    """Returns a prepared network, down to the deepest layer that an experiment asks for."""
    weights, pooling = load_backbone(network)
    weights = down_to(weights, [*settings.content_layers, *settings.style_layers])
    return FrozenFeatures(weights, pooling, precision, device)


def objective_by(features: FrozenFeatures, settings: Experiment, inputs: Inputs) -> Objective:
    """Returns what an experiment asks of the image by a network that is there, on its device."""
    device = features.get_buffer("mean").device
    return Objective(
        features,
        inputs.content_image.to(device),
        inputs.style_image.to(device),
        content_layers=settings.content_layers,
        style_layers=settings.style_layers,
        content_weight=settings.content_weight,
        style_weight=settings.style_weight,
        variation_weight=settings.variation_weight,
        range_weight=settings.range_weight,
        convention=settings.convention,
    )


def build_module(
    objective: Objective, settings: Experiment, image: Tensor, run: RunState
) -> StyleTransfer:
    """Returns the module that optimises an image by an experiment's L-BFGS.

    In a damped run the steps, and the largest step allowed, are shorter by ``DAMPING``.
    """
    factor = DAMPING if run.damped else 1.0
    lbfgs = settings.lbfgs.model_dump()
    return StyleTransfer(
        objective,
        image,
        lbfgs={**lbfgs, "lr": lbfgs["lr"] * factor},
        first_step=settings.first_step,
        largest_step=settings.largest_step * factor,
        run=run,
    )
