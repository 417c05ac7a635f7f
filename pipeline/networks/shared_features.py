"""The frozen network when several processes compute one image: the first one's, and its copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.networks.frozen.extractor import FrozenFeatures, Tape
from pipeline.networks.frozen.statistics import Statistics
from pipeline.networks.layers import NO_CONTEXT, Context, Needs, needed_layers
from pipeline.networks.vgg import check_size
from pipeline.runtime.precision import Precision
from pipeline.runtime.process_group import ProcessGroup


class SharedFeatures(FrozenFeatures):
    """``FrozenFeatures`` of a leader; the device is the group's.

    The others take part in images that are computed in pieces. The leader alone computes the rest.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        pooling: str,
        precision: Precision,
        tile: int | None,
        group: ProcessGroup,
    ) -> None:
        super().__init__(weights, pooling, precision, group.device, tile, group)
        self._copies = group.copies(_Copy, dict(weights), pooling, precision, tile)
        self._known: Context | None = None

    def collect(
        self, image: Tensor, needs: Needs, context: Context = NO_CONTEXT
    ) -> tuple[Statistics, Tape]:
        if self.divides(image):
            check_size(image, needed_layers(needs))  # before the others begin
            new = None if context is self._known else tuple(map(dict, context))
            self._copies.call("collect", image, needs, new)
            self._known = context
        return super().collect(image, needs, context)

    def pull_back(self, tape: Tape, gradients: Statistics) -> Tensor:
        if tape.group.size > 1:
            self._copies.call("pull_back", gradients)
        return super().pull_back(tape, gradients)


def make_features(
    weights: Mapping[str, Tensor],
    pooling: str,
    precision: Precision,
    device: torch.device | str,
    tile: int | None,
    group: ProcessGroup,
) -> FrozenFeatures:
    """Returns the network of one process, or with tiles that of the leader of a larger group."""
    if tile is None or group.size == 1:
        return FrozenFeatures(weights, pooling, precision, device, tile)
    return SharedFeatures(weights, pooling, precision, tile, group)


class _Copy:
    """The same network in another process, with the tape of the latest image."""

    def __init__(
        self,
        group: ProcessGroup,
        weights: Mapping[str, Tensor],
        pooling: str,
        precision: Precision,
        tile: int | None,
    ) -> None:
        self.network = FrozenFeatures(weights, pooling, precision, group.device, tile, group)
        self.context = NO_CONTEXT
        self.tape: Tape | None = None

    def collect(self, image: Tensor, needs: Needs, context: tuple[Any, ...] | None) -> None:
        """``context`` are the fields of a new one, or None for that of the call before."""
        self.context = self.context if context is None else Context(*context)
        self.tape = None  # freed before the next one
        _, self.tape = self.network.collect(image, needs, self.context)

    def pull_back(self, gradients: Statistics) -> None:
        assert self.tape is not None, "nothing was collected"
        tape, self.tape = self.tape, None
        self.network.pull_back(tape, gradients)
