"""Makes the images and the objective of an experiment from its settings."""

from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pipeline import paths
from pipeline.config.schema import Experiment
from pipeline.imaging.picture_files import read_picture
from pipeline.imaging.tensors import resize, scaled_size, to_tensor, white_noise
from pipeline.losses import make_terms
from pipeline.losses.objective import Objective
from pipeline.losses.term import merged_needs
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.layers import needed_layers
from pipeline.networks.vgg import down_to
from pipeline.networks.weight_files import load_backbone
from pipeline.runtime.precision import Precision


class Inputs(NamedTuple):
    """The images of a run: (1, 3, H, W) float32, RGB in [0, 1]."""

    content_image: Tensor
    style_image: Tensor
    start: Tensor


def read_inputs(settings: Experiment, division: int = 1) -> Inputs:
    """Reads the pictures, resizes them to ``sizes``, and makes the image to start from."""
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
    """Returns the (H, W) of content and style image, divided by ``division`` and rounded down."""

    def size(name: str) -> tuple[int, int]:
        height, width = scaled_size(picture_size(name), settings.size_edge, settings.size)
        return max(1, height // division), max(1, width // division)

    content_size = size(settings.content)
    return content_size, size(settings.style) if settings.style_resize == "own" else content_size


def picture_size(name: str) -> tuple[int, int]:
    """Returns the (H, W) of a picture, by its name in the catalogue."""
    with Image.open(paths.picture(name)) as picture:
        return picture.height, picture.width


def build_objective(
    settings: Experiment, network: Path, inputs: Inputs, device: torch.device, precision: Precision
) -> Objective:
    """Returns the total loss of an experiment, with its targets, on a device.

    ``network`` is the file of weights that the stage backbone wrote. Only the layers down to the
    deepest that a loss term needs are used.
    """
    terms = make_terms(settings.model_dump())
    weights, pooling = load_backbone(network)
    weights = down_to(weights, needed_layers(merged_needs(terms)))
    images = {"content": inputs.content_image.to(device), "style": inputs.style_image.to(device)}
    return Objective(FrozenFeatures(weights, pooling, precision, device), terms, images)
