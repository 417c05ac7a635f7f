"""Makes the images and the objective of an experiment from its settings."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pipeline import paths
from pipeline.config.schema import Colour, Experiment
from pipeline.errors import UserError
from pipeline.imaging.colour import (
    match_colours,
    match_luminance,
    to_grey,
    with_chroma,
)
from pipeline.imaging.masks import is_empty_after, read_mask, resize_mask
from pipeline.imaging.picture_files import read_picture, read_with_alpha
from pipeline.imaging.tensors import resize, scaled_size, to_tensor, white_noise
from pipeline.losses.objective import Objective
from pipeline.losses.styles import Mask, StyleTerm
from pipeline.losses.term import merged_needs
from pipeline.networks.layers import LAYERS, needed_layers
from pipeline.networks.shared_features import make_features
from pipeline.networks.vgg import down_to
from pipeline.networks.weight_files import load_backbone
from pipeline.runtime.precision import Precision
from pipeline.runtime.process_group import ALONE, ProcessGroup


class Inputs(NamedTuple):
    """The images of a run: (1, 3, H, W) float32, RGB in [0, 1]; a mask is (1, 1, H, W).

    Attributes:
        images: {role: image or mask} as the losses see them, with the colours that the setting
            ``colour`` gives them.
        start: of the size of the content image.
        content_image: with its own colours.
    """

    images: dict[str, Tensor]
    start: Tensor
    content_image: Tensor


def read_inputs(settings: Experiment, size: int | None = None) -> Inputs:
    """Reads the pictures, resizes them to ``sizes``, and makes the image to start from.

    Raises:
        UserError: a mask does not fit its picture, or has nothing in it.
    """
    resized = partial(resize, resampling=settings.resampling, antialias=settings.antialias)
    edges = sizes(settings, size)

    def read(role: str, name: str) -> Tensor:
        return resized(to_tensor(read_picture(paths.picture(name))), edges[role])

    content = read("content", settings.content)
    images = {"content": content}
    for role, style in settings.styles.items():
        images[role] = _recoloured(read(role, style.image), content, settings.colour)
    for role, mask in settings.masks.items():
        masked = "content" if role.endswith("_content_mask") else role.removesuffix("_mask")
        owner = role.removesuffix("_mask").removesuffix("_content")
        images[role] = _read_mask(settings, mask, masked, owner, edges[masked])
    if settings.init == "noise":
        start = white_noise(edges["content"], settings.seed, settings.noise_level)
    elif settings.init == "content":
        start = content
    elif settings.init == "style":
        start = resized(images[next(iter(settings.styles))], edges["content"])
    else:
        start = read("content", settings.init)
    if settings.colour == "luminance":
        images["content"] = to_grey(content)
        start = start if settings.init == "noise" else to_grey(start)
    return Inputs(images, start, content)


def _read_mask(
    settings: Experiment, mask: Mask, masked: str, style: str, size: tuple[int, int]
) -> Tensor:
    """Returns a style's mask of the picture with the role ``masked``, resized to (H, W)."""
    path, picture = paths.picture(mask.image), settings.images[masked]
    if picture_size(mask.image) != picture_size(picture):
        (height, width), (needed_height, needed_width) = map(picture_size, (mask.image, picture))
        raise UserError(
            f"the mask {mask.image} has {width}x{height} pixels, and {picture}, which it is for, "
            f"{needed_width}x{needed_height}. Give both the same size"
        )
    resized = resize_mask(read_mask(path, mask.label), size)
    guided = [
        layer
        for term in settings.terms()
        if isinstance(term, StyleTerm)
        for layer in term.part_weights
        if style in term.shares(layer)
    ]
    for layer in guided:
        if is_empty_after(resized, LAYERS[layer].block - 1):
            raise UserError(
                f"the mask {mask.image} has nothing inside at {layer}, after the poolings. Make "
                "the region or the image larger, or leave the layer out"
            )
    return resized


def _recoloured(style_image: Tensor, content_image: Tensor, colour: Colour) -> Tensor:
    if colour == "luminance":
        return match_luminance(style_image, content_image)
    if colour in ("cholesky", "pca"):
        return match_colours(style_image, content_image, colour)
    return style_image


def developed(image: Tensor, content_image: Tensor, settings: Experiment) -> Tensor:
    """Returns the image that is saved: with the chroma of the content image, if its own is unused.

    Both are (1, 3, H, W) float32, RGB in [0, 1], of one size; the result too.
    """
    if settings.colour == "luminance":
        return with_chroma(image, content_image.to(image))
    return image


def content_alpha(settings: Experiment) -> Tensor | None:
    """Returns the opacity of the content image, resized with it, or None if all is opaque.

    It is (1, 1, H, W) float32, 0 where the image is transparent and 1 where it is opaque.
    """
    picture = read_with_alpha(paths.picture(settings.content))
    if picture.mode == "RGB":
        return None
    alpha = to_tensor(picture)[:, 3:]
    return resize(alpha, sizes(settings)["content"], settings.resampling, settings.antialias)


def sizes(settings: Experiment, size: int | None = None) -> dict[str, tuple[int, int]]:
    """Returns {role: (H, W)} of the content image and the style images.

    ``size`` takes the place of the setting, as in a coarse phase.
    """

    def scaled(name: str) -> tuple[int, int]:
        return scaled_size(picture_size(name), settings.size_edge, size or settings.size)

    content = scaled(settings.content)
    edges = {"content": content}
    for role, style in settings.styles.items():
        own = settings.style_resize == "own"
        height, width = scaled(style.image) if own else content
        edges[role] = max(1, round(height * style.scale)), max(1, round(width * style.scale))
    return edges


def picture_size(name: str) -> tuple[int, int]:
    """Returns the (H, W) of a picture, by its name in the catalogue."""
    with Image.open(paths.picture(name)) as picture:
        return picture.height, picture.width


def build_objective(
    settings: Experiment,
    network: Path,
    inputs: Inputs,
    device: torch.device,
    precision: Precision,
    tile: int | None = None,
    group: ProcessGroup = ALONE,
) -> Objective:
    """Returns the total loss of an experiment, with its targets, on a device.

    ``network`` is the file of weights that the stage backbone wrote. Only the layers down to the
    deepest that a loss term needs are used. ``tile`` and ``group`` are as for ``FrozenFeatures``;
    without a tile there is nothing to divide, and the leader computes alone.
    """
    terms = settings.terms()
    weights, pooling = load_backbone(network)
    weights = down_to(weights, needed_layers(merged_needs(terms)))
    images = {role: image.to(device) for role, image in inputs.images.items()}
    view = to_grey if settings.colour == "luminance" else None
    features = make_features(weights, pooling, precision, device, tile, group)
    return Objective(features, terms, images, view)
