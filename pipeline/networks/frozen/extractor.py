"""A network with fixed weights that collects statistics of its layers and pulls gradients back.

Autograd would keep every activation until the backward pass. With fixed weights, a layer's gradient
needs only the places where ReLU let a value through, and where a statistic needs them the values.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from pipeline.networks.frozen.convolutions import Convolution, SplitInput, frozen_convolution
from pipeline.networks.frozen.pooling import pool, pool_backward, pool_relu_backward, relu_backward
from pipeline.networks.frozen.statistics import (
    NO_GUIDES,
    Guides,
    Statistics,
    guide_of,
    statistic,
)
from pipeline.networks.layers import LAYERS, Needs, down_to_deepest, needed_layers
from pipeline.networks.vgg import check_size, layers_of
from pipeline.runtime.precision import Precision

Kept = Literal["nothing", "mask", "values"]


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


class Tape(NamedTuple):
    """What the backward pass needs of a forward pass, and consumes."""

    first_input: Tensor
    """What went into the first layer."""
    records: list[tuple[Step, Tensor | None, Tensor | None, Guides]]
    """Of each step, what is kept of its activations, the indices of a max pooling before it, and
    the guides at its size."""


class FrozenFeatures(nn.Module):
    """The network of ``vgg.Features`` for losses: faster, and with less memory.

    Args:
        weights, pooling: as ``vgg.Features`` takes them, taps included.
        precision: of the convolutions. ``float32``; ``tf32``: on a GPU, products of 10 bits of
            mantissa; ``bf16``: activations of 8 bits. Gram matrices are float32 in all of them (on
            a CPU that multiplies bfloat16, to two millionths). So is the first layer: rounding
            its input would remove the small steps near a minimum.
        device: where it computes, and what its convolutions are chosen for.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        pooling: str,
        precision: Precision = "float32",
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        weights = {name: tensor.to(device) for name, tensor in weights.items()}
        self.pooling, self.precision = pooling, precision
        self.layers = layers_of(weights)
        self.dtype = torch.bfloat16 if precision == "bf16" else weights["mean"].dtype
        for name in ("mean", "std"):
            self.register_buffer(name, weights[name].view(1, 3, 1, 1), persistent=False)
        self.convolutions = nn.ModuleDict()
        for name in self.layers:
            self.convolutions[name] = frozen_convolution(
                weights[f"{name}.weight"], weights[f"{name}.bias"], precision, not self.convolutions
            )
            self.register_buffer(f"{name}_tap", weights.get(f"{name}.tap"), persistent=False)

    def forward(self, image: Tensor, needs: Needs, guides: Guides = NO_GUIDES) -> Statistics:
        """Returns statistics that autograd can differentiate with respect to the image, once.

        A kind ``gram_matrix@NAME`` is weighted by the guide of that name, {name: (1, 1, H, W)
        float32 in [0, 1]} of the image's size; it goes through the network's poolings as averages.

        Those of a small network stand for VGG-19's, by its taps. The image and the errors are as
        for ``vgg.Features``.
        """
        if not needed_layers(needs):
            return {kind: {} for kind in needs}
        statistics = _arranged(_CollectedStatistics.apply(image, self, needs, guides), needs)
        for kind, values in statistics.items():
            for layer, value in values.items():
                tap = getattr(self, f"{layer}_tap")
                if tap is not None:
                    values[layer] = statistic(kind).apply_tap(value, tap)
        return statistics

    @torch.no_grad()
    def collect(
        self, image: Tensor, needs: Needs, guides: Guides = NO_GUIDES
    ) -> tuple[Statistics, Tape]:
        """Returns statistics before any taps, and what ``pull_back`` needs, as ``forward``.

        Autograd is not involved. At least one layer must be needed.
        """
        steps = forward_steps(self.layers, needs, self.dtype)
        check_size(image, needed_layers(needs))
        statistics: Statistics = {kind: {} for kind in needs}
        maps = (image - self.mean) / self.std
        maps = maps.contiguous(memory_format=torch.channels_last)
        first = self._convolution(self.layers[0])
        maps = first.split(maps) if isinstance(first, SplitInput) else maps
        tape = Tape(maps, [])
        for step in steps:
            indices = None
            if step.pooled:
                maps, indices = pool(maps, self.pooling)
                guides = {name: avg_pool2d(guide, 2) for name, guide in guides.items()}
            maps = self._convolution(step.layer)(maps)
            for kind in step.statistics:
                guide = guide_of(kind, guides)
                statistics[kind][step.layer] = statistic(kind).collect(maps, guide)
            tape.records.append((step, _kept(maps, step), indices, guides))
        return statistics, tape

    @torch.no_grad()
    def pull_back(self, tape: Tape, gradients: Statistics) -> Tensor:
        """Returns the gradient of the image, (1, 3, H, W), from those of all its statistics.

        The tape, from ``collect``, is emptied on the way, so that its memory is freed.
        """
        gradient: Tensor | None = None
        below_pooling, indices = False, None
        while tape.records:
            step, maps, indices_before, guides = tape.records.pop()
            if maps is None:
                maps = self._convolution(step.layer)(tape.first_input)
            if below_pooling and step.statistics:
                assert gradient is not None
                gradient, below_pooling = pool_backward(gradient, indices, maps), False
            for kind in step.statistics:
                of_statistic = gradients[kind][step.layer]
                guide = guide_of(kind, guides)
                gradient = statistic(kind).pull_back(of_statistic, gradient, maps, guide)
            assert gradient is not None
            if below_pooling:
                gradient = pool_relu_backward(gradient, indices, maps)
            else:
                relu_backward(gradient, maps, out=gradient)
            del maps  # freed before the convolution
            gradient = self._convolution(step.layer).backward(gradient)
            below_pooling, indices = step.pooled, indices_before
        assert gradient is not None, "the tape is empty"
        return gradient / self.std

    def _convolution(self, name: str) -> Convolution:
        convolution = self.convolutions[name]
        assert isinstance(convolution, Convolution)
        return convolution


class _CollectedStatistics(torch.autograd.Function):
    """``collect`` and ``pull_back`` as one operation of autograd's."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, network: FrozenFeatures, needs: Needs, guides: Guides
    ) -> tuple[Tensor, ...]:
        ctx.network, ctx.needs = network, needs
        statistics, ctx.tape = network.collect(image, needs, guides)
        return tuple(statistics[kind][layer] for kind in needs for layer in needs[kind])

    @staticmethod
    def backward(ctx: Any, *values: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.network.pull_back(ctx.tape, _arranged(values, ctx.needs)), None, None, None


def _kept(maps: Tensor, step: Step) -> Tensor | None:
    if step.kept == "nothing":
        return None
    return maps if step.kept == "values" else maps.to(torch.bool)


def _arranged(values: Iterable[Tensor], needs: Needs) -> Statistics:
    """Returns as {kind: {layer: value}} what is given in the order of ``needs``."""
    rest = iter(values)
    return {kind: {layer: next(rest) for layer in layers} for kind, layers in needs.items()}
