"""The names and shapes of VGG-19's convolutions (Simonyan & Zisserman 2015).

A layer's name stands for its activations after ReLU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipeline.errors import UserError, nearest


class Layer(NamedTuple):
    """One convolution: its name, its number in torchvision's ``vgg19().features``, its channels."""

    name: str
    number: int
    channels_in: int
    channels_out: int
    block: int


def _layers() -> Iterator[Layer]:
    number, channels_in = 0, 3
    for block, (depth, width) in enumerate([(2, 64), (2, 128), (4, 256), (4, 512), (4, 512)], 1):
        for position in range(1, depth + 1):
            yield Layer(f"conv{block}_{position}", number, channels_in, width, block)
            number, channels_in = number + 2, width
        number += 1


LAYERS: dict[str, Layer] = {layer.name: layer for layer in _layers()}
"""The sixteen convolutions by name, first to last."""


def check_layers(names: Iterable[str]) -> None:
    """Raises ``UserError`` for a name that is not a layer."""
    for name in names:
        if name not in LAYERS:
            hint = nearest(name, list(LAYERS))
            raise UserError(f"unknown layer {name!r}{hint} The layers are {', '.join(LAYERS)}")
