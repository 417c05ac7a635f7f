"""Stage ``backbone``: a file of weights → the network as the paper uses it.

Writes the network, the embedded one prepared the same way, and a record of what was done, into
``data/backbone``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline import paths
from pipeline.config.params import read_params
from pipeline.config.schema import Backbone
from pipeline.files import sha256, write_json
from pipeline.imaging.picture_files import read_picture
from pipeline.imaging.sources import WEIGHTS, locate
from pipeline.imaging.tensors import resize, scaled_size, to_tensor
from pipeline.networks.rescaling import rescale, rescaling_means
from pipeline.networks.small_vgg import predicting, tapped
from pipeline.networks.vgg import Features
from pipeline.networks.weight_files import (
    EMBEDDED,
    imagenet_weights,
    load_small,
    load_weights,
    save_backbone,
)
from pipeline.stages import run_stage


def prepare(backbone: Backbone) -> None:
    """Loads, rescales if asked to, and writes the network and its record.

    The embedded network is prepared the same way beside it, for warm starts.

    Raises:
        UserError: weights or calibration pictures that cannot be had or read.
    """
    calibration = _calibration(backbone) if backbone.rescale else {}
    record: dict[str, Any] = backbone.model_dump() | {
        "calibration": {source: sha256(file) for source, (file, _) in calibration.items()}
    }
    images = [image for _, image in calibration.values()]
    file = _file(backbone)
    if backbone.architecture == "vgg19":
        weights, rescaling = _vgg19(load_weights(file, backbone.convention), backbone, images)
    else:
        weights, rescaling = _small(load_small(file), backbone, images)
    if file == EMBEDDED:
        embedded = weights
    else:
        embedded, _ = _small(load_small(EMBEDDED), backbone, images)
    save_backbone(paths.WEIGHTS_FILE, weights, backbone.pooling)
    save_backbone(paths.EMBEDDED_FILE, embedded, backbone.pooling)
    hashes = {"weights_sha256": sha256(file), "embedded_sha256": sha256(EMBEDDED)}
    write_json(paths.BACKBONE_RECORD, record | hashes | rescaling)
    dead = sum(map(len, rescaling.get("dead_filters", {}).values()))
    done = f"rescaled, {dead} dead filters" if backbone.rescale else "not rescaled"
    print(f"backbone: {backbone.architecture}, {file}, {backbone.pooling} pooling, {done}")


def _file(backbone: Backbone) -> Path:
    if backbone.weights == "imagenet":
        return imagenet_weights()
    if backbone.weights == "embedded":
        return EMBEDDED
    return locate(backbone.weights, None, paths.downloads(), WEIGHTS)


def _vgg19(
    weights: dict[str, Tensor], backbone: Backbone, images: list[Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not backbone.rescale:
        return weights, {}
    means, rescaling = _means(Features(weights, backbone.pooling), backbone, images)
    return rescale(weights, means), rescaling


def _small(
    weights: dict[str, Tensor], backbone: Backbone, images: list[Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not backbone.rescale:
        return tapped(weights), {}
    predictions = Features(predicting(weights), backbone.pooling)
    means, rescaling = _means(predictions, backbone, images)
    return tapped(weights, means), rescaling


def _means(
    features: Features, backbone: Backbone, images: list[Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    means, dead = rescaling_means(features, images, dead_below=backbone.dead_below)
    divisors = {name: _summary(mean) for name, mean in means.items()}
    return means, {"dead_filters": dead, "divisors": divisors}


def _calibration(backbone: Backbone) -> dict[str, tuple[Path, Tensor]]:
    """Returns the file and the image of each source."""
    files = {source: locate(source, None, paths.downloads()) for source in backbone.calibration}
    return {
        source: (file, _calibration_image(file, backbone.calibration_size))
        for source, file in files.items()
    }


def _calibration_image(file: Path, pixels: int) -> Tensor:
    image = to_tensor(read_picture(file))
    height, width = image.shape[-2:]
    return resize(image, scaled_size((height, width), "long", pixels), "bicubic", antialias=True)


def _summary(mean: Tensor) -> dict[str, float]:
    return {
        key: float(f"{value.item():.6g}")
        for key, value in (("min", mean.min()), ("median", mean.median()), ("max", mean.max()))
    }


if __name__ == "__main__":
    run_stage(lambda: prepare(read_params().backbone))
