"""The statistics of a layer that losses compare: its features and its Gram matrix.

Feature maps are (1, C, H', W') activations after ReLU, in channels-last memory.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from pipeline.networks.frozen.gram_matrix import GramMatrix

Statistics = dict[str, dict[str, Tensor]]
"""{kind of statistic: {layer: its value}}."""
Guides = Mapping[str, Tensor]
"""{name: (1, 1, H, W) float32, the weight of each position in a statistic, in [0, 1]}."""
NO_GUIDES: Guides = MappingProxyType({})


class Statistic(Protocol):
    """A kind of statistic with a hand-written gradient; enter new ones in ``STATISTICS``."""

    needs_values: bool
    """Whether the gradient needs the feature maps, and not only where they are above 0."""

    def collect(self, maps: Tensor, guide: Tensor | None = None) -> Tensor:
        """Returns the statistic of feature maps, float32 for maps of lower precision.

        The guide is (1, 1, H', W'), the weight of each position; None: all count the same.
        """

    def pull_back(
        self,
        of_statistic: Tensor,
        gradient: Tensor | None,
        maps: Tensor,
        guide: Tensor | None = None,
    ) -> Tensor:
        """Adds the statistic's gradient to that of the maps so far, in place; None stands for 0.

        ``maps`` are the feature maps, or a bool mask of where they are above 0.
        """

    def apply_tap(self, value: Tensor, tap: Tensor) -> Tensor:
        """Returns the statistic of T F from that of F, where T is a small network's (C, C) tap."""

    def size(self, channels: int, positions: int) -> int:
        """Returns the number of values of the statistic."""


class Features:
    """The feature maps F themselves."""

    needs_values = False

    def collect(self, maps: Tensor, guide: Tensor | None = None) -> Tensor:
        assert guide is None, "only Gram matrices can be guided"
        return maps.to(torch.promote_types(maps.dtype, torch.float32), copy=True)

    def pull_back(
        self,
        of_statistic: Tensor,
        gradient: Tensor | None,
        maps: Tensor,
        guide: Tensor | None = None,
    ) -> Tensor:
        # Only a network that computes in the image's dtype keeps masks.
        dtype = of_statistic.dtype if maps.dtype == torch.bool else maps.dtype
        added = of_statistic.to(dtype, copy=True, memory_format=torch.channels_last)
        return added if gradient is None else gradient.add_(added)

    def apply_tap(self, value: Tensor, tap: Tensor) -> Tensor:
        # Not as a convolution, which a GPU might round to TF32.
        product: Tensor = tap @ value.flatten(start_dim=2)
        return product.view(1, -1, *value.shape[2:])

    def size(self, channels: int, positions: int) -> int:
        return channels * positions


STATISTICS: dict[str, Statistic] = {"features": Features(), "gram_matrix": GramMatrix()}
"""By kind. The gradients of a layer are added up in the alphabetical order of the kinds."""


def statistic(kind: str) -> Statistic:
    """Returns the statistic of a kind; ``gram_matrix@NAME`` has a guide of that name."""
    return STATISTICS[kind.partition("@")[0]]


def guide_of(kind: str, guides: Guides) -> Tensor | None:
    """Returns the guide of a kind, or None if it has none."""
    name = kind.partition("@")[2]
    return guides[name] if name else None
