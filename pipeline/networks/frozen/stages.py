"""The steps of a forward pass, and the stages and pieces in which a large image is computed.

A stage is a few consecutive steps between two poolings. It is computed piece by piece, all of it
before the next one. A piece has a halo: the positions around it that its features depend on. A
stage of few layers has a narrow one; its price is that the next stage's input is kept whole.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from pipeline.networks.frozen.statistics import statistic
from pipeline.networks.frozen.windows import Piece, pieces
from pipeline.networks.layers import LAYERS, Needs, down_to_deepest, needed_layers

Kept = Literal["nothing", "mask", "values"]
STAGES = {1: 1, 3: 2, 4: 2}
"""{block that begins a stage: edge of its pieces as a multiple of the tile's}. Blocks 3 and 4 take
less than half of the memory for the same part of the image."""
GRID = 16
"""Pixels per position of the deepest layers; a tile's edge is a multiple of it."""


class Step(NamedTuple):
    """One layer of a forward pass; the estimate of a run's memory is derived from these."""

    layer: str
    pooled: bool
    """Whether a pooling comes before it."""
    statistics: tuple[str, ...]
    """The kinds that are collected from its activations."""
    kept: Kept
    """What of its activations is kept for the backward pass. Of the first layer nothing is kept:
    its maps are the largest, and the cheapest to compute again."""


class Stage(NamedTuple):
    """Consecutive layers that are computed piece by piece.

    Attributes:
        block: that of the first layer; the poolings before it are in earlier stages.
        ends_pooled: whether another stage goes on from its output, after a pooling.
        pieces: of its input.
    """

    steps: list[Step]
    block: int
    ends_pooled: bool
    pieces: list[Piece]

    @property
    def poolings(self) -> int:
        """The number of poolings from its input to its output."""
        return self.poolings_to(self.steps[-1]) + self.ends_pooled

    def poolings_to(self, step: Step) -> int:
        """Returns the number of poolings from its input to one of its layers."""
        return LAYERS[step.layer].block - self.block


def forward_steps(
    layers: Sequence[str], needs: Needs, dtype: torch.dtype = torch.float32
) -> list[Step]:
    """Returns the steps of a forward pass down to the deepest of a network's layers that is needed.

    Where activations are bfloat16, their values are kept in place of a mask: they are small enough,
    and cost less time.

    Raises:
        UserError: a needed layer that the network does not have.
    """
    steps: list[Step] = []
    block = 1
    for name in down_to_deepest(layers, needed_layers(needs)):
        pooled, block = LAYERS[name].block != block, LAYERS[name].block
        kinds = tuple(kind for kind in sorted(needs) if name in needs[kind])
        by_value = dtype == torch.bfloat16 or any(statistic(kind).needs_values for kind in kinds)
        kept: Kept = "nothing" if not steps else "values" if by_value else "mask"
        steps.append(Step(name, pooled, kinds, kept))
    return steps


def divided(steps: Sequence[Step], size: tuple[int, int], tile: int | None) -> list[Stage]:
    """Returns the stages of a pass over an (H, W) image.

    ``tile`` is the edge in pixels of a piece of the image without its halo. An image that is no
    larger, or any for None, has one stage of one piece.
    """
    if tile is None or max(size) <= tile:
        return [Stage(list(steps), 1, False, pieces(size, None))]
    blocks = [LAYERS[step.layer].block for step in steps]
    begins = [n for n, step in enumerate(steps) if step.pooled and blocks[n] in STAGES]
    stages = []
    for start, end in zip([0, *begins], [*begins, len(steps)], strict=True):
        block = blocks[start]
        # The stage before has pooled.
        own = [steps[start]._replace(pooled=False), *steps[start + 1 : end]]
        stage = Stage(own, block, end < len(steps), [])
        halo = 0
        for step in reversed(own):
            halo = 2 * (halo + 1) if step.pooled else halo + 1
        grid = 2**stage.poolings
        edge = max(grid, (STAGES[block] * tile >> (block - 1)) // grid * grid)
        height, width = (length >> (block - 1) for length in size)
        stages.append(stage._replace(pieces=pieces((height, width), edge, halo, grid)))
    return stages
