"""Where an experiment runs, in what precision, and what it takes of the memory."""

from __future__ import annotations

import math

import torch
from PIL import Image

from pipeline import paths
from pipeline.config.schema import Experiment
from pipeline.errors import UserError
from pipeline.imaging.tensors import scaled_size
from pipeline.networks.weight_files import read_channels
from pipeline.runtime.precision import Precision, fastest_precision, gpu_has_bf16
from pipeline.transfer.memory import RESERVED, Demand, available, refuse_what_does_not_fit

SHARING = 8
"""How many processes share a GPU, at most. On an H200 four made 2.1 times as many pictures of 256
pixels as one, and eight 2.7 times."""


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
        UserError: TF32 anywhere but on a CUDA GPU, or bf16 on one that does not have it.
    """
    if settings.precision == "auto":
        return fastest_precision(device)
    if settings.precision == "tf32" and device.type != "cuda":
        raise UserError(
            f"precision is 'tf32', which only a CUDA GPU has; the device is {device.type}. "
            "Use 'auto', 'float32' or 'bf16'"
        )
    if settings.precision == "bf16" and device.type == "cuda" and not gpu_has_bf16():
        raise UserError(
            "precision is 'bf16', which this GPU does not have. Use 'auto', 'float32' or 'tf32'"
        )
    return settings.precision


def sizes(settings: Experiment, division: int = 1) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the (H, W) that an experiment asks for, of the content image and of the style's.

    Args:
        settings: of the experiment.
        division: of every edge, rounded down: 4 is a quarter of the size.
    """
    size = _scaled_size(settings.content, settings)
    own = settings.style_resize == "own"
    style_size = _scaled_size(settings.style, settings) if own else size
    return _divided(size, division), _divided(style_size, division)


def _divided(size: tuple[int, int], division: int) -> tuple[int, int]:
    return max(1, size[0] // division), max(1, size[1] // division)


def _scaled_size(name: str, settings: Experiment) -> tuple[int, int]:
    return scaled_size(_picture_size(name), settings.size_edge, settings.size)


def _picture_size(name: str) -> tuple[int, int]:
    with Image.open(paths.picture(name)) as picture:
        width, height = picture.size
    return height, width


def demands(settings: Experiment, device: torch.device, precision: Precision) -> list[Demand]:
    """Returns what an experiment takes of its device's memory, for each network that it runs on."""
    reserved = RESERVED[precision] if device.type == "cuda" else 1.0
    size, style_size = sizes(settings)
    original = max(math.prod(_picture_size(name)) for name in (settings.content, settings.style))
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
            reserved,
        )
        for channels, pooling in map(read_channels, networks)
    ]


def check_memory(settings: Experiment, device: torch.device, precision: Precision) -> None:
    """Raises ``UserError`` where an experiment takes more memory than its device has free."""
    for demand in demands(settings, device, precision):
        edge = max(demand.size) if settings.size_edge == "long" else min(demand.size)
        refuse_what_does_not_fit(demand, available(device), edge)
