"""Stage ``backbone``: a file of VGG-19 weights → the network as the paper uses it.

Writes ``data/backbone/vgg19.safetensors`` and, beside it, a record of what was done.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline import paths
from pipeline.errors import command_line
from pipeline.files import sha256, write_json
from pipeline.images import resize, scaled_size, to_tensor
from pipeline.params import read_params
from pipeline.pictures import read_picture
from pipeline.schema import Backbone
from pipeline.sources import locate
from pipeline.vgg import Features, rescale, rescaling_means
from pipeline.weights import imagenet_weights, load_weights, save_backbone


def prepare(backbone: Backbone) -> None:
    """Loads, rescales if asked to, and writes the network and its record.

    Raises:
        UserError: weights or calibration pictures that cannot be had or read.
    """
    imagenet = backbone.weights == "imagenet"
    file = imagenet_weights() if imagenet else locate(backbone.weights, None, paths.downloads())
    weights = load_weights(file, "torchvision" if imagenet else backbone.convention)
    record: dict[str, Any] = {
        "weights": backbone.weights,
        "weights_sha256": sha256(file),
        "convention": backbone.convention,
        "pooling": backbone.pooling,
        "rescaled": backbone.rescale,
    }
    if backbone.rescale:
        weights, rescaling = _rescaled(weights, backbone)
        record |= rescaling
    save_backbone(paths.WEIGHTS_FILE, weights, backbone.pooling)
    write_json(paths.BACKBONE_RECORD, record)
    dead = sum(map(len, record.get("dead_filters", {}).values()))
    done = f"rescaled, {dead} dead filters" if backbone.rescale else "not rescaled"
    print(f"backbone: {file}, {backbone.pooling} pooling, {done}")


def _rescaled(
    weights: dict[str, Tensor], backbone: Backbone
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    files = [locate(source, None, paths.downloads()) for source in backbone.calibration]
    images = [_calibration_image(file, backbone.calibration_size) for file in files]
    means, dead = rescaling_means(
        Features(weights, backbone.pooling), images, dead_below=backbone.dead_below
    )
    record = {
        "calibration": dict(zip(backbone.calibration, map(sha256, files), strict=True)),
        "calibration_size": backbone.calibration_size,
        "dead_below": backbone.dead_below,
        "dead_filters": dead,
        "divisors": {name: _summary(mean) for name, mean in means.items()},
    }
    return rescale(weights, means), record


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
    command_line(lambda: prepare(read_params().backbone))
