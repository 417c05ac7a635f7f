"""The statistics that losses compare: what is computed from the activations of one layer.

To add one, subclass ``Statistic`` and enter it in ``STATISTICS``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from pipeline.networks.frozen.gram import add_gram_gradient, gram_matrix

Statistics = dict[str, dict[str, Tensor]]
"""{kind of statistic: {layer: its value}}."""


class Statistic(ABC):
    """A kind of statistic, with its gradient by hand."""

    needs_values: ClassVar[bool]
    """Whether the gradient needs the activations, and not only where they are above 0."""

    @abstractmethod
    def collect(self, maps: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the statistic of a layer.

        Args:
            maps: (1, C, H', W') activations after ReLU, channels-last, in the network's dtype.
            dtype: the image's.
        """

    @abstractmethod
    def pull_back(self, of_statistic: Tensor, gradient: Tensor | None, maps: Tensor) -> Tensor:
        """Adds the gradient that reaches the activations through the statistic.

        Args:
            of_statistic: gradient of the statistic, of its shape.
            gradient: (1, C, H', W') of the activations so far, in the network's dtype, changed in
                place; None stands for 0.
            maps: the activations, or a bool mask of where they are above 0 if nothing at the layer
                ``needs_values``.
        """

    @abstractmethod
    def apply_tap(self, value: Tensor, tap: Tensor) -> Tensor:
        """Returns the statistic of the tap T times the activations, T F, from that of F.

        Args:
            value: the statistic of a small network's C channels.
            tap: (C, C), see ``pipeline.networks.small_vgg``.
        """

    @abstractmethod
    def size(self, channels: int, positions: int) -> int:
        """Returns the number of values of the statistic."""


class Features(Statistic):
    """The activations themselves, (1, C, H', W')."""

    needs_values = False

    def collect(self, maps: Tensor, dtype: torch.dtype) -> Tensor:
        return maps.to(dtype, copy=True)

    def pull_back(self, of_statistic: Tensor, gradient: Tensor | None, maps: Tensor) -> Tensor:
        # Where a mask is kept, the network computes in the image's dtype.
        dtype = of_statistic.dtype if maps.dtype == torch.bool else maps.dtype
        added = of_statistic.to(dtype, copy=True, memory_format=torch.channels_last)
        return added if gradient is None else gradient.add_(added)

    def apply_tap(self, value: Tensor, tap: Tensor) -> Tensor:
        # Not as a convolution, which a GPU might round to TF32.
        product: Tensor = tap @ value.flatten(start_dim=2)
        return product.view(1, -1, *value.shape[2:])

    def size(self, channels: int, positions: int) -> int:
        return channels * positions


class GramMatrix(Statistic):
    """The Gram matrix, (C, C) float32."""

    needs_values = True

    def collect(self, maps: Tensor, dtype: torch.dtype) -> Tensor:
        return gram_matrix(maps)

    def pull_back(self, of_statistic: Tensor, gradient: Tensor | None, maps: Tensor) -> Tensor:
        return add_gram_gradient(gradient, of_statistic, maps)

    def apply_tap(self, value: Tensor, tap: Tensor) -> Tensor:
        return tap @ value @ tap.T

    def size(self, channels: int, positions: int) -> int:
        return channels**2


STATISTICS: dict[str, Statistic] = {"features": Features(), "gram_matrix": GramMatrix()}
"""Kind → what computes it, in the order in which their gradients are added up."""
