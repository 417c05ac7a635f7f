"""VGG-19's convolutions (Simonyan & Zisserman 2015); a name stands for activations after ReLU."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import Tensor

Needs = Mapping[str, Sequence[str]]
"""{kind of statistic: layers to compute it for}; the kinds are those of ``frozen.statistics``."""


class Context(NamedTuple):
    """What statistics of an image need beside its features.

    Attributes:
        guides: {name: (1, 1, H, W) float32, the weight of each position, in [0, 1]}, of the image's
            size; averaged where the network pools. A kind of statistic ``KIND@NAME`` is a mean
            weighted by the squares of the guide NAME.
        references: {name: {layer: (1, C, H', W') float32}}, features to compare those of the image
            with: those of the name NAME for ``squared_distance@NAME``.
    """

    guides: Mapping[str, Tensor] = MappingProxyType({})
    references: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({})


NO_CONTEXT = Context()


class Layer(NamedTuple):
    """One convolution: its name, its index in torchvision's ``vgg19().features``, its channels."""

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
"""VGG-19's sixteen convolutions by name, first to last."""

ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "vgg19": tuple(LAYERS),
    "vgg19-small": tuple(name for name in LAYERS if name.endswith(("_1", "_2"))),
}
"""Name of an architecture → its layers, first to last, under the names of VGG-19's."""


def needed_layers(needs: Needs) -> list[str]:
    """Returns the layers of which any statistic is needed, each once."""
    return list(dict.fromkeys(layer for layers in needs.values() for layer in layers))


def down_to_deepest(layers: Sequence[str], wanted: Collection[str]) -> Sequence[str]:
    """Returns a network's layers, first to last, down to the deepest that is wanted.

    Raises:
        UserError: a layer that the network does not have.
    """
    check_layers(wanted, layers)
    return layers[: max(map(layers.index, wanted), default=-1) + 1]


def check_layers(names: Iterable[str], known: Sequence[str] = tuple(LAYERS)) -> None:
    """Raises ``UserError`` for a name that is not among a network's layers."""
    for name in names:
        if name in known:
            continue
        layers = f"The layers are {', '.join(known)}"
        if name in LAYERS:
            raise UserError(f"this network has no layer {name}. {layers}")
        raise UserError(f"unknown layer {name!r}{nearest(name, list(known))} {layers}")
