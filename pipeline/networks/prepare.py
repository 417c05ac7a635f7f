"""Prepares the network as the paper uses it: reads its weights and rescales its filters."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import paths
from pipeline.files import sha256, write_json
from pipeline.imaging.downloads import WEIGHTS, locate
from pipeline.imaging.picture_files import read_picture
from pipeline.imaging.tensors import resize, scaled_size, to_tensor
from pipeline.networks.rescaling import rescale, rescaling_means
from pipeline.networks.settings import Backbone
from pipeline.networks.small_vgg import predicting, tapped
from pipeline.networks.vgg import Features
from pipeline.networks.weight_files import (
    EMBEDDED,
    imagenet_weights,
    load_small,
    load_weights,
    save_weights,
)

THREADS = 2
"""Threads that prepare a network. torch computes eigenvectors, and the predictions of a small
network, not to the same bits with another number."""


@contextmanager
def _fixed_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_fixed_threads()
def prepare(settings: Backbone) -> None:
    """Writes the prepared network, the embedded one for warm starts, and a record of both.

    Both networks are rescaled over the same calibration pictures.

    Raises:
        UserError: weights or calibration pictures that are missing or cannot be read.
    """
    sources = dict.fromkeys(settings.calibration) if settings.rescale else {}
    calibration = {source: locate(source, None, paths.downloads()) for source in sources}
    images = [_calibration_image(file, settings.calibration_size) for file in calibration.values()]
    file = published_weights(settings.weights)
    small = settings.architecture == "vgg19-small"
    published = load_small(file) if small else load_weights(file, settings.convention)
    weights, rescaling = _rescaled(published, settings, images)
    embedded = weights
    if file != EMBEDDED:
        embedded, _ = _rescaled(load_small(EMBEDDED), settings, images)
    save_weights(paths.WEIGHTS_FILE, weights, pooling=settings.pooling)
    save_weights(paths.EMBEDDED_FILE, embedded, pooling=settings.pooling)
    record = {
        **settings.model_dump(),
        "calibration": {source: sha256(file) for source, file in calibration.items()},
        "weights_sha256": sha256(file),
        "embedded_sha256": sha256(EMBEDDED),
        **rescaling,
    }
    write_json(paths.BACKBONE_RECORD, record)
    dead = sum(map(len, rescaling.get("dead_filters", {}).values()))
    done = f"rescaled, {dead} dead filters" if settings.rescale else "not rescaled"
    print(f"backbone: {settings.architecture}, {file}, {settings.pooling} pooling, {done}")


def published_weights(source: str) -> Path:
    """Returns the file that a setting ``weights`` names: ``imagenet``, ``embedded`` or a source.

    Raises:
        UserError: there is no such file, or it cannot be downloaded.
    """
    if source == "imagenet":
        return imagenet_weights()
    return EMBEDDED if source == "embedded" else locate(source, None, paths.downloads(), WEIGHTS)


def _calibration_image(file: Path, long_edge: int) -> Tensor:
    image = to_tensor(read_picture(file))
    size = scaled_size((image.shape[2], image.shape[3]), "long", long_edge)
    return resize(image, size, "bicubic", antialias=True)


def _rescaled(
    weights: dict[str, Tensor], settings: Backbone, images: Sequence[Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns a network as ``Features`` takes it, rescaled if it shall be, and a record of that.

    The weights are VGG-19's, or those of a small network, which has heads.
    """
    small = "conv1_1.head" in weights
    if not settings.rescale:
        return tapped(weights) if small else weights, {}
    features = Features(predicting(weights) if small else weights, settings.pooling)
    means, dead = rescaling_means(features, images, dead_below=settings.dead_below)
    record = {"dead_filters": dead, "divisors": {name: _summary(m) for name, m in means.items()}}
    return tapped(weights, means) if small else rescale(weights, means), record


def _summary(mean: Tensor) -> dict[str, float]:
    values = {"min": mean.min(), "median": mean.median(), "max": mean.max()}
    return {key: float(f"{value.item():.6g}") for key, value in values.items()}
