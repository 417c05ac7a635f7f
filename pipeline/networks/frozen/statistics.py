"""The statistics of a layer that losses compare, such as its Gram matrix, with their gradients.

Feature maps are (1, C, H', W') activations after ReLU, in channels-last memory. All statistics but
the features themselves are means over positions, so that of an image is the sum of the shares of
its tiles.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from pipeline.networks.frozen.gram_matrix import (
    add_gram_matrix_gradient,
    by_position,
    gram_matrix_of,
    mean_of,
)
from pipeline.networks.frozen.windows import Piece, Window, whole_window
from pipeline.networks.layers import LAYERS, Context, Needs
from pipeline.runtime.process_group import ProcessGroup
from pipeline.runtime.summation import total

Statistics = dict[str, dict[str, Tensor]]
"""{kind of statistic: {layer: its value}}."""


class Positions(NamedTuple):
    """What a statistic knows of the positions of some feature maps.

    Attributes:
        weights: (1, 1, H', W'), which add up to 1 over the whole image; None: all count the same.
        reference: (1, C, H', W') features to compare with, after the tap.
        tap: (C, C), of a small network.
    """

    weights: Tensor | None = None
    reference: Tensor | None = None
    tap: Tensor | None = None


class Statistic(Protocol):
    """A kind of statistic with a hand-written gradient; enter new ones in ``STATISTICS``."""

    needs_values: bool
    """Whether the gradient needs the feature maps, and not only where they are above 0."""
    is_mean: bool
    """Whether it is a mean over the positions."""

    def collect(self, maps: Tensor, positions: Positions) -> Tensor:
        """Returns the statistic of feature maps, float32 for maps of lower precision."""

    def pull_back(
        self, of_statistic: Tensor, gradient: Tensor | None, maps: Tensor, positions: Positions
    ) -> Tensor:
        """Adds the statistic's gradient to that of the maps so far, in place; None stands for 0.

        ``maps`` are the feature maps, or a bool mask of where they are above 0.
        """

    def apply_tap(self, value: Tensor, tap: Tensor) -> Tensor:
        """Returns the statistic of T F from that of F, where T is a small network's (C, C) tap."""

    def shape(self, channels: int, height: int, width: int) -> tuple[int, ...]:
        """Returns the shape of the statistic of (1, channels, height, width) maps."""


class Features:
    """The feature maps F themselves."""

    needs_values = False
    is_mean = False

    def collect(self, maps: Tensor, positions: Positions) -> Tensor:
        assert positions.weights is None, "features cannot be guided"
        return maps.to(_exact(maps), copy=True)

    def pull_back(
        self, of_statistic: Tensor, gradient: Tensor | None, maps: Tensor, positions: Positions
    ) -> Tensor:
        # Only a network that computes in the image's dtype keeps masks.
        dtype = of_statistic.dtype if maps.dtype == torch.bool else maps.dtype
        added = of_statistic.to(dtype, copy=True, memory_format=torch.channels_last)
        return added if gradient is None else gradient.add_(added)

    def apply_tap(self, value: Tensor, tap: Tensor) -> Tensor:
        return _tapped(value, tap)

    def shape(self, channels: int, height: int, width: int) -> tuple[int, ...]:
        return (1, channels, height, width)


class SquaredDistance:
    """Σ_i (F_i − P_i)² of features F and a reference P, the mean over the positions: a scalar."""

    needs_values = True
    is_mean = True

    def collect(self, maps: Tensor, positions: Positions) -> Tensor:
        squares = self._difference(maps, positions).square_()
        return total(by_position(squares)) / maps[0, 0].numel()

    def pull_back(
        self, of_statistic: Tensor, gradient: Tensor | None, maps: Tensor, positions: Positions
    ) -> Tensor:
        added = self._difference(maps, positions)
        if positions.tap is not None:
            added = _tapped(added, positions.tap.T)
        added = added.mul_(of_statistic * (2 / maps[0, 0].numel())).to(maps.dtype)
        return added if gradient is None else gradient.add_(added)

    def apply_tap(self, value: Tensor, tap: Tensor) -> Tensor:
        return value  # the difference was tapped

    def shape(self, channels: int, height: int, width: int) -> tuple[int, ...]:
        return ()

    @staticmethod
    def _difference(maps: Tensor, positions: Positions) -> Tensor:
        assert positions.reference is not None, "there is nothing to compare with"
        exact = maps.to(_exact(maps))
        tapped = exact if positions.tap is None else _tapped(exact, positions.tap)
        return tapped - positions.reference


class GramMatrix:
    """The correlations of filters, (C, C) (``gram_matrix_of``)."""

    needs_values = True
    is_mean = True

    def collect(self, maps: Tensor, positions: Positions) -> Tensor:
        return gram_matrix_of(maps, positions.weights)

    def pull_back(
        self, of_statistic: Tensor, gradient: Tensor | None, maps: Tensor, positions: Positions
    ) -> Tensor:
        return add_gram_matrix_gradient(of_statistic, gradient, maps, positions.weights)

    def apply_tap(self, value: Tensor, tap: Tensor) -> Tensor:
        return tap @ value @ tap.T

    def shape(self, channels: int, height: int, width: int) -> tuple[int, ...]:
        return (channels, channels)


class MeanAndGramMatrix:
    """The mean of each filter, and beside it the Gram matrix: (C, 1 + C)."""

    needs_values = True
    is_mean = True

    def collect(self, maps: Tensor, positions: Positions) -> Tensor:
        gram = gram_matrix_of(maps, positions.weights)
        return torch.cat([mean_of(maps, positions.weights), gram], 1)

    def pull_back(
        self, of_statistic: Tensor, gradient: Tensor | None, maps: Tensor, positions: Positions
    ) -> Tensor:
        of_mean, of_gram = of_statistic[:, 0], of_statistic[:, 1:]
        gradient = add_gram_matrix_gradient(of_gram, gradient, maps, positions.weights)
        weights = 1 / maps[0, 0].numel() if positions.weights is None else positions.weights
        return gradient.add_((of_mean.view(1, -1, 1, 1) * weights).to(gradient.dtype))

    def apply_tap(self, value: Tensor, tap: Tensor) -> Tensor:
        return torch.cat([tap @ value[:, :1], tap @ value[:, 1:] @ tap.T], 1)

    def shape(self, channels: int, height: int, width: int) -> tuple[int, ...]:
        return (channels, 1 + channels)


STATISTICS: dict[str, Statistic] = {
    "features": Features(),
    "gram_matrix": GramMatrix(),
    "mean_and_gram_matrix": MeanAndGramMatrix(),
    "squared_distance": SquaredDistance(),
}
"""By kind. The gradients of a layer are added up in the alphabetical order of the kinds."""


def statistic(kind: str) -> Statistic:
    """Returns the statistic of a kind, which may end in ``@`` and a name of the context."""
    return STATISTICS[kind.partition("@")[0]]


class Collector:
    """Collects the statistics of an image from windows of its layers, and pulls gradients back.

    Args:
        needs, context: as for ``extractor.FrozenFeatures``.
        size: (H, W) of the image.
        taps: {layer: the tap of a small network}.

    Attributes:
        statistics: those of all windows so far, before any taps.
    """

    def __init__(
        self, needs: Needs, context: Context, size: tuple[int, int], taps: Mapping[str, Tensor]
    ) -> None:
        self.statistics: Statistics = {kind: {} for kind in needs}
        self._needs, self._references, self._taps = needs, context.references, taps
        self._image = whole_window(size)
        self._weights: dict[tuple[str, int], Tensor] = {}
        deepest = max((LAYERS[name].block for names in needs.values() for name in names), default=1)
        for name, guide in context.guides.items():
            for block in range(1, deepest + 1):
                self._weights[name, block] = position_weights(guide)
                guide = avg_pool2d(guide, 2) if block < deepest else guide

    def collect(self, kind: str, layer: str, maps: Tensor, piece: Piece, poolings: int) -> None:
        """Adds the share of a piece to a statistic.

        ``maps`` are the layer's maps of the piece, ``poolings`` after the input of its stage.
        """
        window, whole = piece.inner.pooled(poolings), self._whole(layer)
        if not window.area:
            return
        of_layer, inner = self.statistics[kind], _contiguous(piece.inner_of(maps, poolings))
        value = statistic(kind).collect(inner, self._positions(kind, layer, window))
        if not statistic(kind).is_mean:
            of_layer[layer] = window.add(value, of_layer.get(layer), whole.size)
        else:
            share = self._share(kind, window, whole) * value
            of_layer[layer] = of_layer[layer] + share if layer in of_layer else share

    def add_up(self, group: ProcessGroup, channels: Mapping[str, int], like: Tensor) -> None:
        """Adds up the shares of the processes, of layers with so many channels.

        ``like`` has the type and the device of statistics where this process has no share.
        """
        for kind, of_layer in self.statistics.items():
            for layer in self._needs[kind]:
                size = self._whole(layer).size
                shape = statistic(kind).shape(channels[layer], *size)
                if layer not in of_layer:
                    of_layer[layer] = like.new_zeros(shape)
                if len(shape) == 4:
                    of_layer[layer] = _contiguous(of_layer[layer])
                group.add_up(of_layer[layer])

    def pull_back(
        self,
        kind: str,
        layer: str,
        of_statistic: Tensor,
        gradient: Tensor | None,
        maps: Tensor,
        piece: Piece,
        poolings: int,
    ) -> Tensor:
        """Adds a statistic's gradient to that of the piece's maps so far; None stands for 0.

        ``maps`` are those of ``collect``, or a bool mask of where they are above 0.
        """
        window, whole = piece.inner.pooled(poolings), self._whole(layer)
        own, positions = statistic(kind), self._positions(kind, layer, window)
        if not own.is_mean:
            of_statistic = window.of(of_statistic)
        if piece.is_whole:
            return own.pull_back(of_statistic, gradient, maps, positions)
        if gradient is None:
            dtype = of_statistic.dtype if maps.dtype == torch.bool else maps.dtype
            gradient = torch.zeros_like(maps, dtype=dtype, memory_format=torch.channels_last)
        if window.area:
            if own.is_mean:
                of_statistic = self._share(kind, window, whole) * of_statistic
            inner = _contiguous(piece.inner_of(maps, poolings))
            piece.inner_of(gradient, poolings).add_(
                own.pull_back(of_statistic, None, inner, positions)
            )
        return gradient

    def _share(self, kind: str, window: Window, whole: Window) -> float:
        """Returns the share of a window in the whole mean; 1 with weights, which contain it."""
        return 1.0 if self._guide(kind) else window.area / whole.area

    def _whole(self, layer: str) -> Window:
        return self._image.pooled(LAYERS[layer].block - 1)

    def _guide(self, kind: str) -> str:
        """Returns the name of the guide of a kind, empty if it has none."""
        name = kind.partition("@")[2]
        return name if (name, 1) in self._weights else ""

    def _positions(self, kind: str, layer: str, window: Window) -> Positions:
        name, block = kind.partition("@")[2], LAYERS[layer].block
        weights = self._weights.get((name, block))
        reference = self._references.get(name, {}).get(layer)
        return Positions(
            None if weights is None else window.of(weights),
            None if reference is None else window.of(reference),
            self._taps.get(layer),
        )


def position_weights(guide: Tensor) -> Tensor:
    """Returns t_k² / Σ t² of a guide t, of its shape."""
    squares = guide.square()
    return squares / total(squares)


def _contiguous(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


def _exact(maps: Tensor) -> torch.dtype:
    return torch.promote_types(maps.dtype, torch.float32)


def _tapped(value: Tensor, tap: Tensor) -> Tensor:
    # Not as a convolution, which a GPU might round to TF32.
    product = by_position(value) @ tap.T
    return product.view(1, *value.shape[2:], len(tap)).permute(0, 3, 1, 2)
