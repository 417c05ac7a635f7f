"""A network with fixed weights: statistics of its layers, with a backward pass written by hand.

Autograd would keep every activation until the backward pass. With fixed weights, a layer's gradient
needs only the places where ReLU let a value through, and where a statistic needs them the values.

A large image is computed in pieces (``stages``). The gradients of statistics are known when the
statistics of all pieces are there. A stage of several pieces is therefore computed a second time on
the way back, each piece just before its gradient; a stage of one piece keeps what that needs.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.networks.frozen.convolutions import Convolution, SplitInput, frozen_convolution
from pipeline.networks.frozen.pooling import pool, pool_backward, pool_relu_backward, relu_backward
from pipeline.networks.frozen.stages import Stage, Step, divided, forward_steps
from pipeline.networks.frozen.statistics import Collector, Statistics, statistic
from pipeline.networks.frozen.windows import Piece, whole_window
from pipeline.networks.layers import NO_CONTEXT, Context, Needs, needed_layers
from pipeline.networks.vgg import check_size, layers_of
from pipeline.runtime.precision import Precision
from pipeline.runtime.process_group import ALONE, ProcessGroup


class Record(NamedTuple):
    """Of a step, what is kept of its activations, and the indices of a max pooling before it."""

    step: Step
    maps: Tensor | None
    indices: Tensor | None


class PieceTape(NamedTuple):
    """What the backward pass needs of a piece, and consumes.

    Attributes:
        first_input: what went into the first layer.
        output: of the stage, if another goes on from it.
        indices: those of a max pooling before the output.
    """

    first_input: Tensor
    records: list[Record]
    output: Tensor | None = None
    indices: Tensor | None = None


class Tape(NamedTuple):
    """What the backward pass needs of a forward pass, and consumes.

    Attributes:
        group: the processes among which the pieces were divided.
        stages: of each its input, and what is kept of its piece if it has only one.
    """

    collector: Collector
    group: ProcessGroup
    stages: list[tuple[Stage, Tensor, PieceTape | None]]


class FrozenFeatures(nn.Module):
    """The network of ``vgg.Features`` for losses: faster, and with less memory.

    Args:
        weights, pooling: as ``vgg.Features`` takes them, taps included.
        precision: of the convolutions. ``float32``; ``tf32``: on a GPU, products of 10 bits of
            mantissa; ``bf16``: activations of 8 bits. Gram matrices are float32 in all of them (on
            a CPU that multiplies bfloat16, to two millionths). So is the first layer: rounding
            its input would remove the small steps near a minimum.
        device: where it computes, and what its convolutions are chosen for.
        tile: edge in pixels of the pieces in which larger images are computed, a multiple of
            ``stages.GRID``; None: all images are computed whole.
        group: the processes among which the pieces are divided. Of an image that is computed in
            pieces, each of them calls ``collect`` and ``pull_back``, and gets the same results.
    """

    mean: Tensor
    std: Tensor
    watchers: dict[str, Callable[[float], None]]
    """{name: called after each piece of an image, with the share of its evaluation that is done}"""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        pooling: str,
        precision: Precision = "float32",
        device: torch.device | str = "cpu",
        tile: int | None = None,
        group: ProcessGroup = ALONE,
    ) -> None:
        super().__init__()
        weights = {name: tensor.to(device) for name, tensor in weights.items()}
        self.pooling, self.precision, self.tile, self.group = pooling, precision, tile, group
        self.watchers, self._visits, self._all_visits = {}, 0, 0
        self.layers = layers_of(weights)
        self.channels = {name: len(weights[f"{name}.bias"]) for name in self.layers}
        self.dtype = torch.bfloat16 if precision == "bf16" else weights["mean"].dtype
        for name in ("mean", "std"):
            self.register_buffer(name, weights[name].view(1, 3, 1, 1), persistent=False)
        self.convolutions = nn.ModuleDict()
        for name in self.layers:
            self.convolutions[name] = frozen_convolution(
                weights[f"{name}.weight"], weights[f"{name}.bias"], precision, not self.convolutions
            )
            self.register_buffer(f"{name}_tap", weights.get(f"{name}.tap"), persistent=False)

    @property
    def taps(self) -> dict[str, Tensor]:
        """{layer: tap} of a small network; empty for VGG-19."""
        taps = {name: getattr(self, f"{name}_tap") for name in self.layers}
        return {name: tap for name, tap in taps.items() if tap is not None}

    def forward(self, image: Tensor, needs: Needs, context: Context = NO_CONTEXT) -> Statistics:
        """Returns statistics that autograd can differentiate with respect to the image, once.

        Those of a small network stand for VGG-19's, by its taps. The image and the errors are as
        for ``vgg.Features``.
        """
        if not needed_layers(needs):
            return {kind: {} for kind in needs}
        statistics = _arranged(_CollectedStatistics.apply(image, self, needs, context), needs)
        for layer, tap in self.taps.items():
            for kind, values in statistics.items():
                if layer in values:
                    values[layer] = statistic(kind).apply_tap(values[layer], tap)
        return statistics

    def divides(self, image: Tensor) -> bool:
        """Returns whether an image is computed in pieces."""
        return self.tile is not None and max(image.shape[-2:]) > self.tile

    @torch.no_grad()
    def collect(
        self, image: Tensor, needs: Needs, context: Context = NO_CONTEXT
    ) -> tuple[Statistics, Tape]:
        """Returns statistics before any taps, and what ``pull_back`` needs, as ``forward``.

        Autograd is not involved. At least one layer must be needed.
        """
        steps = forward_steps(self.layers, needs, self.dtype)
        check_size(image, needed_layers(needs))
        height, width = image.shape[-2:]
        group = self.group if self.divides(image) else ALONE
        tape = Tape(Collector(needs, context, (height, width), self.taps), group, [])
        stages, maps = divided(steps, (height, width), self.tile), image
        # Each piece is visited on the way forward and on the way back, for the watchers.
        self._visits = 0
        self._all_visits = 2 * sum(len(group.share(stage.pieces)) for stage in stages)
        for stage in stages:
            output_size = whole_window(maps.shape[-2:]).pooled(stage.poolings).size
            output: Tensor | None = None
            kept: PieceTape | None = None
            for piece in group.share(stage.pieces):
                kept = None  # freed before the next one
                kept = self._forward(maps, stage, piece, tape.collector)
                if kept.output is not None:
                    inner = piece.inner_of(kept.output, stage.poolings)
                    output = piece.inner.pooled(stage.poolings).add(inner, output, output_size)
                self._count_visit()
            tape.stages.append((stage, maps, kept if len(stage.pieces) == 1 else None))
            if stage.ends_pooled:
                channels = self.channels[stage.steps[-1].layer]
                shape = torch.Size((1, channels, *output_size))
                maps = self._added_up(group, output, shape, self.dtype)
        if group.size > 1:
            tape.collector.add_up(group, self.channels, self.mean)
        return tape.collector.statistics, tape

    @torch.no_grad()
    def pull_back(self, tape: Tape, gradients: Statistics) -> Tensor:
        """Returns the gradient of the image, (1, 3, H, W), from those of all its statistics.

        The tape, from ``collect``, is emptied on the way, so that its memory is freed.
        """
        gradient: Tensor | None = None
        while tape.stages:
            stage, maps, kept = tape.stages.pop()
            of_output, gradient = gradient, None
            for piece in tape.group.share(stage.pieces):
                if kept is None:
                    kept = self._forward(maps, stage, piece)
                pulled = self._backward(kept, stage, piece, tape.collector, gradients, of_output)
                gradient = piece.outer.add(pulled, gradient, maps.shape[-2:])
                kept = None
                self._count_visit()
            gradient = self._added_up(tape.group, gradient, maps.shape, maps.dtype)
        assert gradient is not None, "the tape is empty"
        return gradient

    def _added_up(
        self, group: ProcessGroup, maps: Tensor | None, shape: torch.Size, dtype: torch.dtype
    ) -> Tensor:
        """Returns the sum of the maps that the processes have; one without has zeros."""
        if maps is None:
            maps = torch.zeros(shape, dtype=dtype, device=self.mean.device)
        if group.size > 1:
            maps = group.add_up(maps.contiguous(memory_format=torch.channels_last))
        return maps

    def _count_visit(self) -> None:
        self._visits += 1
        for watch in self.watchers.values():
            watch(self._visits / self._all_visits)

    def _forward(
        self, maps: Tensor, stage: Stage, piece: Piece, collector: Collector | None = None
    ) -> PieceTape:
        """Computes a piece of a stage, and collects its statistics unless they are known."""
        maps = piece.outer.of(maps)
        if stage.block == 1:
            maps = (maps - self.mean) / self.std
        maps = maps.contiguous(memory_format=torch.channels_last)
        if stage.block == 1:
            first = self._convolution(self.layers[0])
            maps = first.split(maps) if isinstance(first, SplitInput) else maps
        tape = PieceTape(maps, [])
        for step in stage.steps:
            indices = None
            if step.pooled:
                maps, indices = pool(maps, self.pooling)
            maps = self._convolution(step.layer)(maps)
            if collector is not None:
                for kind in step.statistics:
                    collector.collect(kind, step.layer, maps, piece, stage.poolings_to(step))
            tape.records.append(Record(step, _kept(maps, step), indices))
        if not stage.ends_pooled:
            return tape
        output, indices = pool(maps, self.pooling)
        return tape._replace(output=output, indices=indices)

    def _backward(
        self,
        tape: PieceTape,
        stage: Stage,
        piece: Piece,
        collector: Collector,
        gradients: Statistics,
        of_output: Tensor | None,
    ) -> Tensor:
        """Returns the gradient of a piece's input, from those of statistics and stage's output."""
        gradient = of_output
        if of_output is not None and tape.output is not None and not piece.is_whole:
            gradient = torch.zeros_like(tape.output)
            inner = piece.inner.pooled(stage.poolings).of(of_output)
            piece.inner_of(gradient, stage.poolings).copy_(inner)
        below_pooling, indices = stage.ends_pooled, tape.indices
        while tape.records:
            step, maps, indices_before = tape.records.pop()
            if maps is None:
                maps = self._convolution(step.layer)(tape.first_input)
            if below_pooling and step.statistics:
                assert gradient is not None
                gradient, below_pooling = pool_backward(gradient, indices, maps), False
            for kind in step.statistics:
                of_statistic, poolings = gradients[kind][step.layer], stage.poolings_to(step)
                gradient = collector.pull_back(
                    kind, step.layer, of_statistic, gradient, maps, piece, poolings
                )
            assert gradient is not None
            if below_pooling:
                gradient = pool_relu_backward(gradient, indices, maps)
            else:
                relu_backward(gradient, maps, out=gradient)
            del maps  # freed before the convolution
            gradient = self._convolution(step.layer).backward(gradient)
            below_pooling, indices = step.pooled, indices_before
        assert gradient is not None
        return gradient / self.std if stage.block == 1 else gradient

    def _convolution(self, name: str) -> Convolution:
        convolution = self.convolutions[name]
        assert isinstance(convolution, Convolution)
        return convolution


class _CollectedStatistics(torch.autograd.Function):
    """``collect`` and ``pull_back`` as one operation of autograd's."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, network: FrozenFeatures, needs: Needs, context: Context
    ) -> tuple[Tensor, ...]:
        ctx.network, ctx.needs = network, needs
        statistics, ctx.tape = network.collect(image, needs, context)
        outputs = tuple(statistics[kind][layer] for kind in needs for layer in needs[kind])
        # The tape must not hold the outputs, which hold it: Python would free neither.
        ctx.tape.collector.statistics = {}
        return outputs

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
