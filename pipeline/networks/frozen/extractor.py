"""A network with fixed weights: collects statistics of its layers, and pulls gradients back.

Autograd would keep every activation until the backward pass. Where the weights are fixed, a layer's
gradient needs less: which activations ReLU let through, and the activations themselves only where
their Gram matrix was taken (``steps``). All else is freed as soon as the next layer is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.networks.frozen.convolutions import (
    Convolution,
    InParts,
    first_convolution,
    frozen_convolution,
)
from pipeline.networks.frozen.pooling import (
    Pooled,
    pool,
    pool_backward,
    pool_relu_backward,
    relu_backward,
)
from pipeline.networks.frozen.statistics import STATISTICS, Statistics
from pipeline.networks.frozen.steps import Kept, Step, forward_steps
from pipeline.networks.layers import Needs, needed_layers
from pipeline.networks.vgg import check_size, layers_of
from pipeline.runtime.precision import Precision


class Record(NamedTuple):
    """What one layer leaves for the backward pass.

    Attributes:
        step: the layer.
        maps: (1, C, H', W') activations, a bool mask of where they are above 0, or None, as
            ``step.kept`` says.
        pooled: of the pooling before the layer; None without one.
    """

    step: Step
    maps: Tensor | None
    pooled: Pooled | None


class Tape(NamedTuple):
    """What the backward pass needs of a forward pass; the backward pass empties it.

    Attributes:
        first_input: what went into the first layer.
        records: of the layers, first to last.
    """

    first_input: Tensor
    records: list[Record]


class FrozenFeatures(nn.Module):
    """The network of ``vgg.Features`` for losses: faster, and with less memory.

    Args:
        weights: as ``vgg.Features`` takes them, taps included.
        pooling: ``avg`` or ``max``.
        precision: of the convolutions. ``float32``; ``tf32``: on a GPU, products of 10 bits of
            mantissa; ``bf16``: activations of 8 bits. Gram matrices are float32 in all of them (on
            a CPU that multiplies bfloat16, to two millionths). So is the first layer: rounding
            its input would remove the small steps near a minimum.
        device: where it computes, and what its convolutions are chosen for.
    """

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
        buffers = {name: weights[name].view(1, 3, 1, 1) for name in ("mean", "std")}
        self.convolutions = nn.ModuleDict()
        for name in self.layers:
            kernels, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            chosen = first_convolution if name == self.layers[0] else frozen_convolution
            self.convolutions[name] = chosen(kernels, bias, precision)
            if f"{name}.tap" in weights:
                buffers[f"{name}_tap"] = weights[f"{name}.tap"]
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, image: Tensor, needs: Needs) -> Statistics:
        """Returns statistics that autograd can differentiate with respect to the image, once.

        Args:
            image: (1, 3, H, W) float32, RGB, 0 black and 1 white (values outside are allowed).
            needs: {kind of statistic: names from ``self.layers``}.

        Returns:
            {kind: {layer: value}}; those of a small network stand for VGG-19's, by its taps.

        Raises:
            UserError: a layer that the network does not have, or an image smaller than one
                position of the deepest layer.
        """
        statistics: Statistics = {kind: {} for kind in needs}
        if not needed_layers(needs):
            return statistics
        for (kind, layer), value in zip(
            _places(needs), _Collected.apply(image, self, needs), strict=True
        ):
            tap = getattr(self, f"{layer}_tap", None)
            statistics[kind][layer] = (
                value if tap is None else STATISTICS[kind].apply_tap(value, tap)
            )
        return statistics

    @torch.no_grad()
    def collect(self, image: Tensor, needs: Needs) -> tuple[Statistics, Tape]:
        """Returns statistics, before any taps, and what ``pull_back`` needs; without autograd.

        Arguments and errors are those of ``forward``; at least one layer must be needed.
        """
        steps = forward_steps(self.layers, needs, self.dtype)
        check_size(image, needed_layers(needs))
        statistics: Statistics = {kind: {} for kind in needs}
        maps = self._normalised(image)
        tape = Tape(maps, [])
        for step in steps:
            pooled = None
            if step.pooled:
                maps, pooled = pool(maps, self.pooling)
            maps = self._convolution(step.layer)(maps)
            for kind in step.statistics:
                statistics[kind][step.layer] = STATISTICS[kind].collect(maps, image.dtype)
            tape.records.append(Record(step, _kept(maps, step.kept), pooled))
        return statistics, tape

    @torch.no_grad()
    def pull_back(self, tape: Tape, gradients: Statistics) -> Tensor:
        """Returns the gradient of the image.

        Args:
            tape: from ``collect``; empty afterwards, so that its memory is freed on the way.
            gradients: of every statistic that ``collect`` returned.

        Returns:
            (1, 3, H, W), of the image's dtype.
        """
        gradient: Tensor | None = None
        pooled: Pooled | None = None
        while tape.records:
            step, maps, pooled_before = tape.records.pop()
            if pooled and step.statistics:
                assert gradient is not None
                gradient, pooled = pool_backward(gradient, pooled), None
            if maps is None:
                maps = self._convolution(step.layer)(tape.first_input)
            for kind in step.statistics:
                of_statistic = gradients[kind][step.layer]
                gradient = STATISTICS[kind].pull_back(of_statistic, gradient, maps)
            assert gradient is not None
            if pooled:
                gradient = pool_relu_backward(gradient, pooled, maps)
            else:
                relu_backward(gradient, maps, out=gradient)
            del maps  # freed before the convolution
            gradient = self._convolution(step.layer).back(gradient)
            pooled = pooled_before
        assert gradient is not None, "an empty tape"
        return gradient / self.get_buffer("std")

    def _normalised(self, image: Tensor) -> Tensor:
        """Returns what goes into the first layer."""
        x = (image - self.get_buffer("mean")) / self.get_buffer("std")
        x = x.contiguous(memory_format=torch.channels_last)
        first = self._convolution(self.layers[0])
        return first.parts(x) if isinstance(first, InParts) else x

    def _convolution(self, name: str) -> Convolution:
        convolution = self.convolutions[name]
        assert isinstance(convolution, Convolution)
        return convolution


class _Collected(torch.autograd.Function):
    """``collect`` and ``pull_back`` as one operation of autograd's."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, network: FrozenFeatures, needs: Needs
    ) -> tuple[Tensor, ...]:
        statistics, ctx.tape = network.collect(image, needs)
        ctx.network, ctx.needs = network, needs
        return tuple(statistics[kind][layer] for kind, layer in _places(needs))

    @staticmethod
    def backward(ctx: Any, *values: Tensor) -> tuple[Tensor | None, ...]:
        gradients: Statistics = {kind: {} for kind in ctx.needs}
        for (kind, layer), value in zip(_places(ctx.needs), values, strict=True):
            gradients[kind][layer] = value
        return ctx.network.pull_back(ctx.tape, gradients), None, None


def _kept(maps: Tensor, kept: Kept) -> Tensor | None:
    if kept == "nothing":
        return None
    return maps if kept == "values" else maps.to(torch.bool)


def _places(needs: Needs) -> list[tuple[str, str]]:
    return [(kind, layer) for kind, layers in needs.items() for layer in layers]
