"""Takes all measures of a picture, against its content image and its style images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.imaging.picture_files import read_picture
from pipeline.imaging.tensors import to_tensor
from pipeline.measures.colour import colour_distance, colour_histogram
from pipeline.measures.features import (
    STYLE_LAYERS,
    Description,
    content_distance,
    describe,
    embedded_network,
    style_distance,
)
from pipeline.measures.frame import framed
from pipeline.measures.structure import structural_similarity
from pipeline.measures.texture import Groups, texture_distance, texture_statistics
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.vgg import down_to
from pipeline.networks.weight_files import load_backbone

DIGITS = 6
"""Significant digits of a measure."""


class _Style(NamedTuple):
    description: Description
    histogram: Tensor
    texture: Groups


def measure(
    result: Tensor, content: Path, styles: Mapping[Path, float], vgg19: Path | None = None
) -> dict[str, float]:
    """Returns {measure: value} of a picture; all but ``structure`` are 0 for what is the same.

    ``content_distance`` and ``structure`` compare with the content image, ``style_distance``,
    ``colour_distance`` and ``texture_distance`` with the style images: the mean over them by their
    weights. docs/measures.md says more.

    Args:
        result: (1, 3, H, W), RGB in [0, 1], as saved.
        content: the file of the content image.
        styles: {file: weight > 0}.
        vgg19: the prepared network, if both distances by it are wanted too, as ``…_vgg19``.
    """
    with _one_thread(), torch.no_grad():
        result = framed(result.cpu())
        compared = framed(to_tensor(read_picture(content)), like=result)
        shares = {file.absolute(): weight / sum(styles.values()) for file, weight in styles.items()}

        def mean(distance: Callable[[Path], float]) -> float:
            return sum(share * distance(file) for file, share in shares.items())

        known = {file: _style(file, file.stat().st_mtime_ns) for file in shares}
        own, histogram = describe(result, _embedded()), colour_histogram(result)
        texture = texture_statistics(result)
        measures = {
            "content_distance": content_distance(own, describe(compared, _embedded())),
            "style_distance": mean(lambda file: style_distance(own, known[file].description)),
            "structure": structural_similarity(result, compared),
            "colour_distance": mean(lambda file: colour_distance(histogram, known[file].histogram)),
            "texture_distance": mean(lambda file: texture_distance(texture, known[file].texture)),
        }
        if vgg19 is not None:  # it is large, and not kept
            weights, pooling = load_backbone(vgg19)
            network = FrozenFeatures(down_to(weights, STYLE_LAYERS), pooling)
            by_vgg19 = describe(result, network)
            measures |= {
                "content_distance_vgg19": content_distance(by_vgg19, describe(compared, network)),
                "style_distance_vgg19": mean(
                    lambda file: style_distance(by_vgg19, describe(_framed_file(file), network))
                ),
            }
    return {name: float(f"{value:.{DIGITS}g}") for name, value in measures.items()}


@cache
def _embedded() -> FrozenFeatures:
    return embedded_network()


@lru_cache(maxsize=8)
def _style(file: Path, modified_ns: int) -> _Style:  # noqa: ARG001
    """Measures a style image, once for many experiments."""
    image = _framed_file(file)
    return _Style(describe(image, _embedded()), colour_histogram(image), texture_statistics(image))


def _framed_file(file: Path) -> Tensor:
    return framed(to_tensor(read_picture(file)))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Lets sums be in the same order whatever the number of threads of the experiment."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
