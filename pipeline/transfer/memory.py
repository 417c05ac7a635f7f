"""Estimates the memory that a run needs at its peak, and refuses a run that does not fit.

The peak follows from the sizes of the feature maps, from what the extractor keeps of them for the
backward pass, and from how many images L-BFGS stores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

from pipeline import paths
from pipeline.config.schema import Experiment
from pipeline.errors import UserError
from pipeline.losses import make_terms
from pipeline.losses.term import merged_needs
from pipeline.networks.frozen.convolutions import WINOGRAD_CHANNELS
from pipeline.networks.frozen.extractor import forward_steps
from pipeline.networks.frozen.statistics import STATISTICS
from pipeline.networks.layers import Needs
from pipeline.networks.weight_files import read_channels
from pipeline.runtime.device import available
from pipeline.runtime.precision import Precision
from pipeline.transfer.build import picture_size, sizes

MIB, GIB = 2**20, 2**30
FLOAT32, BFLOAT16, INT64 = 4, 2, 8
RGB = 3
IMAGES = 20
"""Images beside those of L-BFGS: pictures, start, parameter, gradient, best image, temporaries."""
READING = 3 + 2 * 3 * FLOAT32
"""Bytes per pixel of a picture while it is read into a tensor."""
SMALLEST = 16
"""The least that the setting ``size`` takes, in pixels."""
HEAP = 192 * MIB
"""What libraries allocate once they compute, and what the allocator keeps although it is free."""
KEPT_BYTES = {"nothing": 0, "mask": 1, "values": FLOAT32}
"""Bytes per activation that is kept for the backward pass, see ``Step.kept``."""
RESERVED = {"float32": 2.5, "tf32": 2.5, "bf16": 1.25}
"""What torch's allocator takes on a GPU per byte that a run asks for (docs/reliability.md)."""


class Demand(NamedTuple):
    """What determines the memory of a run.

    Attributes:
        size, style_size: (H, W) of the image and of the style image.
        channels: {layer: its channels}, of the network, first to last.
        original: pixels of the larger picture as it is read.
        reserved: what the device's allocator takes per byte that a run asks for.
    """

    size: tuple[int, int]
    style_size: tuple[int, int]
    channels: Mapping[str, int]
    needs: Needs
    history_size: int
    precision: Precision
    pooling: str
    original: int = 0
    reserved: float = 1.0

    def reduced(self, factor: float) -> Demand:
        """Returns the demand with both images' edges multiplied by ``factor``, rounded down."""
        height, width = (max(1, int(factor * edge)) for edge in self.size)
        style_height, style_width = (max(1, int(factor * edge)) for edge in self.style_size)
        return self._replace(size=(height, width), style_size=(style_height, style_width))


def estimate(demand: Demand) -> int:
    """Returns the bytes that a run adds at its peak to what its process has before."""
    image = RGB * FLOAT32 * demand.size[0] * demand.size[1]
    history = (2 * (demand.history_size + 1) + 1) * image
    # In float32 whatever the precision: a run may continue in it, and evaluates its result in it.
    evaluation = max(
        _evaluation_bytes(demand, demand.size, with_backward=True),
        _evaluation_bytes(demand, demand.style_size, with_backward=False),
    )
    run = _weight_bytes(demand) + IMAGES * image + history + evaluation
    return max(int(demand.reserved * run), READING * demand.original) + HEAP


def _weight_bytes(demand: Demand) -> int:
    """Returns the bytes of the kernels: as they are read, and of used layers as they are computed.

    Used layers have their kernels forward and flipped, or transformed for Winograd's algorithm (on
    a GPU they are not), and once more in bfloat16 if the run begins in it.
    """
    used = {step.layer for step in forward_steps(list(demand.channels), demand.needs)}
    before, total = RGB, 0
    for name, channels in demand.channels.items():
        each = FLOAT32
        if name in used:
            wide = min(before, channels) >= WINOGRAD_CHANNELS
            each += (4 if wide else 2) * FLOAT32
            each += 2 * BFLOAT16 if demand.precision == "bf16" else 0
        total += 9 * before * channels * each
        before = channels
    return total


def _evaluation_bytes(demand: Demand, size: tuple[int, int], with_backward: bool) -> int:
    """Returns the peak: a layer's input and output, and what is kept of it and of those before."""
    height, width = size
    before, kept, peak = RGB, 0, 0
    for step in forward_steps(list(demand.channels), demand.needs):
        channels, added = demand.channels[step.layer], 0
        if step.pooled:
            height, width = height // 2, width // 2
            added += before * height * width * INT64 if demand.pooling == "max" else 0
        positions = height * width
        added += channels * positions * KEPT_BYTES[step.kept]
        for kind in step.statistics:  # and its target
            added += 2 * STATISTICS[kind].size(channels, positions) * FLOAT32
        computed = (before + channels) * positions * FLOAT32
        peak = max(peak, kept + computed + (added if with_backward else 0))
        before, kept = channels, kept + added
    return peak


def demands(settings: Experiment, device: torch.device, precision: Precision) -> list[Demand]:
    """Returns the demand of an experiment for each network that it runs on."""
    reserved = RESERVED[precision] if device.type == "cuda" else 1.0
    needs = merged_needs(make_terms(settings.model_dump()))
    original = max(math.prod(picture_size(name)) for name in (settings.content, settings.style))
    history = settings.lbfgs.history_size
    networks = [paths.WEIGHTS_FILE, *([paths.EMBEDDED_FILE] if settings.warm_start else [])]
    return [
        Demand(*sizes(settings), channels, needs, history, precision, pooling, original, reserved)
        for channels, pooling in map(read_channels, networks)
    ]


def check_memory(settings: Experiment, device: torch.device, precision: Precision) -> None:
    """Raises ``UserError`` if an experiment needs more memory than its device has free."""
    for demand in demands(settings, device, precision):
        edge = max(demand.size) if settings.size_edge == "long" else min(demand.size)
        check_fits(demand, available(device), edge)


def check_fits(demand: Demand, free: int, edge: int) -> None:
    """Raises ``UserError`` with the sizes that fit, if a run needs more than the free bytes.

    ``edge`` is the size of the run in pixels, as the setting ``size`` counts it.
    """
    needed = estimate(demand)
    if needed <= free:
        return
    sizes = (
        f"size {int(edge * percent / 100)}"
        for percent in range(99, 0, -1)
        if edge * percent >= 100 * SMALLEST and estimate(demand.reduced(percent / 100)) <= free
    )
    histories = (
        f"lbfgs.history_size {count}"
        for count in range(demand.history_size - 1, 0, -1)
        if estimate(demand._replace(history_size=count)) <= free
    )
    remedies = " or ".join(filter(None, (next(sizes, ""), next(histories, ""))))
    height, width = demand.size
    raise UserError(
        f"{width}x{height} pixels take {needed / GIB:.1f} GiB of memory, and {free / GIB:.1f} GiB "
        "are free. " + (f"What fits: {remedies}" if remedies else "Close what else takes memory")
    )
