"""What a run will take of the memory at its peak, and a refusal where that is not to be had.

The peak is known before anything is computed: how large each layer's maps are, which of them stay
for the way back (see ``frozen``), and how many images L-BFGS remembers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch

from pipeline import paths
from pipeline.config.schema import Experiment
from pipeline.errors import UserError
from pipeline.networks.frozen.convolutions import WINOGRAD_CHANNELS
from pipeline.networks.layers import LAYERS, check_layers
from pipeline.networks.weight_files import read_channels
from pipeline.runtime.device import available
from pipeline.runtime.precision import Precision
from pipeline.transfer.build import picture_size, sizes

MIB, GIB = 2**20, 2**30
FLOAT32, BFLOAT16, INT64 = 4, 2, 8
RGB = 3
IMAGES = 20
"""Images that live beside L-BFGS's: pictures, start, parameter, gradient, best, what is between."""
READING = 3 + 2 * 3 * FLOAT32
"""Bytes for each pixel of a picture while it is made a tensor."""
SMALLEST = 16
"""The least that the setting ``size`` takes, in pixels."""
HEAP = 192 * MIB
"""What libraries take once they compute, and what the allocator keeps though it is free."""
RESERVED = {"float32": 2.5, "tf32": 2.5, "bf16": 1.25}
"""Of what a run asks a GPU for, what torch's allocator takes: pieces remain that nothing fits in.

On an H200, VGG-19 in float32 had 1.5, 2.3 and 2.5 times that at 512, 1024 and 2048 pixels, and in
bfloat16 1.1 times, and could do with 1.25 where no more was to be had, at 1024. TF32 was not tried.
"""


class Demand(NamedTuple):
    """What a run is made of, as far as memory goes.

    Attributes:
        size, style_size: (H, W) of the image and of the style image.
        channels: {layer: its channels}, of the network from its first layer on.
        content_layers, style_layers: what losses are taken of.
        history_size: of L-BFGS.
        precision, pooling: of the network.
        original: pixels of the larger picture as it is read.
        reserved: what the device's allocator takes, of what it is asked for.
    """

    size: tuple[int, int]
    style_size: tuple[int, int]
    channels: Mapping[str, int]
    content_layers: Collection[str]
    style_layers: Collection[str]
    history_size: int
    precision: Precision
    pooling: str
    original: int = 0
    reserved: float = 1.0

    def reduced(self, part: float) -> Demand:
        """Returns the same with edges of this part of the length."""
        height, width = (max(1, int(part * edge)) for edge in self.size)
        style_height, style_width = (max(1, int(part * edge)) for edge in self.style_size)
        return self._replace(size=(height, width), style_size=(style_height, style_width))


def estimate(demand: Demand) -> int:
    """Returns the bytes that a run adds at its peak to what its process has before."""
    image = 3 * FLOAT32 * demand.size[0] * demand.size[1]
    history = (2 * (demand.history_size + 1) + 1) * image
    # In float32 whatever the precision: a run that begins in another may go on in it, and ends so.
    evaluation = max(
        _peak(_walk(demand.size, demand), and_back=True),
        _peak(_walk(demand.style_size, demand), and_back=False),
    )
    run = _weights(demand) + IMAGES * image + history + evaluation
    return max(int(demand.reserved * run), READING * demand.original) + HEAP


def _weights(demand: Demand) -> int:
    """Returns the bytes of kernels: as they are read, and down to the deepest as they are used.

    That is turned both ways, or as Winograd's algorithm wants them, which a GPU does without; and
    for each precision.
    """
    before, total, used = RGB, 0, _used(demand)
    for name, channels in demand.channels.items():
        each = FLOAT32
        if name in used:
            wide = min(before, channels) >= WINOGRAD_CHANNELS
            each += (4 if wide else 2) * FLOAT32
            each += 2 * BFLOAT16 if demand.precision == "bf16" else 0
        total += 9 * before * channels * each
        before = channels
    return total


def _used(demand: Demand) -> list[str]:
    """Returns the layers down to the deepest that a loss is taken of."""
    layers, wanted = list(demand.channels), [*demand.content_layers, *demand.style_layers]
    check_layers(wanted, layers)
    deepest = max(map(layers.index, wanted), default=-1)
    return layers[: deepest + 1]


class _Step(NamedTuple):
    """Bytes of what goes into a layer, of what comes out, and of what stays for the way back."""

    before: int
    maps: int
    stays: int


def _walk(size: tuple[int, int], demand: Demand) -> list[_Step]:
    height, width = size
    steps: list[_Step] = []
    before, block = RGB, 1
    for name in _used(demand):
        channels, stays = demand.channels[name], 0
        if LAYERS[name].block != block:
            height, width, block = height // 2, width // 2, LAYERS[name].block
            stays += before * height * width * INT64 * (demand.pooling == "max")
        values = channels * height * width
        if steps:
            stays += values * (FLOAT32 if name in demand.style_layers else 1)
        stays += 2 * values * FLOAT32 * (name in demand.content_layers)
        steps.append(_Step(before * height * width * FLOAT32, values * FLOAT32, stays))
        before = channels
    return steps


def _peak(steps: Sequence[_Step], and_back: bool) -> int:
    kept, peak = 0, 0
    for step in steps:
        peak = max(peak, kept + step.before + step.maps)
        kept += step.stays
    for step in reversed(steps if and_back else []):
        peak = max(peak, kept + step.before + step.maps)
        kept -= step.stays
    return peak


def demands(settings: Experiment, device: torch.device, precision: Precision) -> list[Demand]:
    """Returns what an experiment takes of its device's memory, for each network that it runs on."""
    reserved = RESERVED[precision] if device.type == "cuda" else 1.0
    size, style_size = sizes(settings)
    original = max(math.prod(picture_size(name)) for name in (settings.content, settings.style))
    networks = [paths.WEIGHTS_FILE, *([paths.EMBEDDED_FILE] if settings.warm_start else [])]
    return [
        Demand(
            size,
            style_size,
            channels,
            settings.content_layers,
            settings.style_layers,
            settings.lbfgs.history_size,
            precision,
            pooling,
            original,
            reserved,
        )
        for channels, pooling in map(read_channels, networks)
    ]


def check_memory(settings: Experiment, device: torch.device, precision: Precision) -> None:
    """Raises ``UserError`` where an experiment takes more memory than its device has free."""
    for demand in demands(settings, device, precision):
        edge = max(demand.size) if settings.size_edge == "long" else min(demand.size)
        refuse_what_does_not_fit(demand, available(device), edge)


def refuse_what_does_not_fit(demand: Demand, free: int, edge: int) -> None:
    """Raises where a run would take more than is free.

    Args:
        demand: of the run.
        free: bytes, from ``available``.
        edge: the size now, in pixels, as the setting ``size`` counts it.

    Raises:
        UserError: with what fits.
    """
    needed = estimate(demand)
    if needed <= free:
        return
    sizes = (
        f"size {int(edge * part / 100)}"
        for part in range(99, 0, -1)
        if edge * part >= 100 * SMALLEST and _fits(demand.reduced(part / 100), free)
    )
    histories = (
        f"lbfgs.history_size {count}"
        for count in range(demand.history_size - 1, 0, -1)
        if _fits(demand._replace(history_size=count), free)
    )
    remedies = [remedy for remedy in (next(sizes, ""), next(histories, "")) if remedy]
    height, width = demand.size
    raise UserError(
        f"{width}x{height} pixels take {needed / GIB:.1f} GiB of memory, and {free / GIB:.1f} GiB "
        "are free. "
        + (f"What fits: {' or '.join(remedies)}" if remedies else "Close what else takes memory")
    )


def _fits(demand: Demand, free: int) -> bool:
    return estimate(demand) <= free
