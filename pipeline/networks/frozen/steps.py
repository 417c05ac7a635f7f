"""The layers of a forward pass in order, and what each leaves for the backward pass.

The extractor follows these steps, and the estimate of a run's memory is derived from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from pipeline.networks.frozen.statistics import STATISTICS
from pipeline.networks.layers import LAYERS, Needs, check_layers, needed_layers

Kept = Literal["nothing", "mask", "values"]


class Step(NamedTuple):
    """One layer of a forward pass.

    Attributes:
        layer: its name.
        pooled: whether a pooling comes before it.
        statistics: the kinds that are collected from its activations.
        kept: what is kept of its activations: where they are above 0, which is all that the
            gradient of ReLU needs, or their values. Of the first layer nothing is kept: its maps
            are the largest and the cheapest to compute again.
    """

    layer: str
    pooled: bool
    statistics: tuple[str, ...]
    kept: Kept


def forward_steps(
    layers: Sequence[str], needs: Needs, dtype: torch.dtype = torch.float32
) -> list[Step]:
    """Returns the steps down to the deepest layer that is needed.

    Args:
        layers: of the network, first to last.
        needs: {kind of statistic: layers}.
        dtype: of the activations. bfloat16 values are kept as they are: they are half as large,
            and cost less time than a mask of them.

    Raises:
        UserError: a needed layer that the network does not have.
    """
    needed = needed_layers(needs)
    check_layers(needed, layers)
    deepest = max(map(layers.index, needed), default=-1)
    steps: list[Step] = []
    block = 1
    for name in layers[: deepest + 1]:
        pooled, block = LAYERS[name].block != block, LAYERS[name].block
        kinds = tuple(kind for kind in STATISTICS if name in needs.get(kind, ()))
        kept: Kept = "mask"
        if dtype == torch.bfloat16 or any(STATISTICS[kind].needs_values for kind in kinds):
            kept = "values"
        steps.append(Step(name, pooled, kinds, kept if steps else "nothing"))
    return steps
