"""What an experiment asks for, as tensors: its pictures, its start, its objective on a device."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pipeline import paths
from pipeline.errors import UserError
from pipeline.frozen import FrozenFeatures
from pipeline.images import resize, scaled_size, to_tensor, white_noise
from pipeline.memory import Demand, available, refuse_what_does_not_fit
from pipeline.module import StyleTransfer
from pipeline.objective import Objective
from pipeline.pictures import read_picture
from pipeline.precision import Precision, fastest_precision
from pipeline.schema import Experiment
from pipeline.vgg import down_to
from pipeline.weights import load_backbone, read_channels

DAMPING = 0.1
"""What the second try after a divergence multiplies the lengths of its steps by."""


class Inputs(NamedTuple):
    """The pictures of a run as tensors: (1, 3, H, W) float32, RGB in [0, 1]."""

    content_image: Tensor
    style_image: Tensor
    start: Tensor


def sizes(name: str, settings: Experiment) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the (H, W) that an experiment asks for, of the content image and of the style's."""
    size = _scaled_size(name, "content", settings)
    return size, _scaled_size(name, "style", settings) if settings.style_resize == "own" else size


def _scaled_size(name: str, role: str, settings: Experiment) -> tuple[int, int]:
    return scaled_size(_picture_size(name, role), settings.size_edge, settings.size)


def _picture_size(name: str, role: str) -> tuple[int, int]:
    with Image.open(paths.picture(name, role)) as picture:
        width, height = picture.size
    return height, width


def demands(name: str, settings: Experiment, precision: Precision) -> list[Demand]:
    """Returns what an experiment takes of the memory, for each network that it runs on."""
    size, style_size = sizes(name, settings)
    original = max(math.prod(_picture_size(name, role)) for role in ("content", "style"))
    networks = [paths.WEIGHTS_FILE, *([paths.EMBEDDED_FILE] if settings.warm_start else [])]
    return [
        Demand(
            size,
            style_size,
            channels,
            settings.content_layers,
            settings.style_layers,
            settings.lbfgs.history_size,
            precision,
            pooling,
            original,
        )
        for channels, pooling in map(read_channels, networks)
    ]


def check_memory(
    name: str, settings: Experiment, device: torch.device, precision: Precision
) -> None:
    """Raises ``UserError`` where an experiment takes more memory than its device has free."""
    for demand in demands(name, settings, precision):
        edge = max(demand.size) if settings.size_edge == "long" else min(demand.size)
        refuse_what_does_not_fit(demand, available(device), edge)


def read_inputs(name: str, settings: Experiment) -> Inputs:
    """Returns the pictures of an experiment, resized as it asks, and the image to start from."""
    size, style_size = sizes(name, settings)
    how = settings.resampling, settings.antialias
    content = resize(to_tensor(read_picture(paths.picture(name, "content"))), size, *how)
    style = resize(to_tensor(read_picture(paths.picture(name, "style"))), style_size, *how)
    if settings.init == "content":
        return Inputs(content, style, content)
    if settings.init == "style":
        return Inputs(content, style, resize(style, size, *how))
    return Inputs(content, style, white_noise(size, settings.seed, settings.noise_level))


def find_device(settings: Experiment) -> torch.device:
    """Returns where an experiment runs.

    Raises:
        UserError: the device it names is not here.
    """
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=settings.device).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device is {settings.device!r}, but torch finds none here. Use 'auto' or 'cpu'"
        ) from error


def find_precision(settings: Experiment, device: torch.device) -> Precision:
    """Returns what the network's convolutions are computed in.

    Raises:
        UserError: TF32 anywhere but on a CUDA GPU.
    """
    if settings.precision == "auto":
        return fastest_precision(device)
    if settings.precision == "tf32" and device.type != "cuda":
        raise UserError(
            f"precision is 'tf32', which only a CUDA GPU has; the device is {device.type}. "
            "Use 'auto', 'float32' or 'bf16'"
        )
    return settings.precision


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
    weights, pooling = load_backbone(network)
    weights = down_to(weights, [*settings.content_layers, *settings.style_layers])
    return Objective(
        FrozenFeatures(weights, pooling, precision, device),
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
    objective: Objective, settings: Experiment, start: Tensor, damped: bool = False
) -> StyleTransfer:
    """Returns the search that an experiment asks for: from ``start``, by its L-BFGS.

    A damped one takes steps that are shorter by ``DAMPING``, and so are those it may take at most.
    """
    factor = DAMPING if damped else 1.0
    lbfgs = settings.lbfgs.model_dump()
    return StyleTransfer(
        objective,
        start,
        lbfgs={**lbfgs, "lr": lbfgs["lr"] * factor},
        first_step=settings.first_step,
        largest_step=settings.largest_step * factor,
    )
