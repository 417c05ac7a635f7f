"""Estimates the memory of a run at its peak, chooses its tiles, and refuses what does not fit.

The peak follows from the sizes of the feature maps, from what the extractor keeps of them for the
backward pass, and from how many images L-BFGS stores.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch

from pipeline.config.schema import Experiment
from pipeline.errors import UserError
from pipeline.losses.styles import StyleTerm
from pipeline.losses.term import LayerTerm, merged_needs
from pipeline.networks.frozen.convolutions import WINOGRAD_CHANNELS
from pipeline.networks.frozen.stages import Stage, divided, forward_steps
from pipeline.networks.frozen.statistics import statistic
from pipeline.networks.layers import LAYERS, Needs
from pipeline.networks.weight_files import read_channels
from pipeline.runtime.device import available
from pipeline.runtime.precision import Precision
from pipeline.transfer.build import picture_size, sizes
from pipeline.transfer.phases import phases_of

MIB, GIB = 2**20, 2**30
FLOAT32, BFLOAT16, INT64 = 4, 2, 8
RGB = 3
IMAGES, TILED_IMAGES = 20, 10
"""Images beside those of L-BFGS: pictures, start, parameter, gradient, best image, temporaries.
The second number is for a run in tiles; both were fitted to measured runs."""
FIRST_IMAGES = 8
"""Those that are there while the style images are measured: pictures, start, temporaries."""
READING = 3 + 2 * 3 * FLOAT32
"""Bytes per pixel of a picture while it is read into a tensor."""
SMALLEST = 16
"""The least that the setting ``size`` takes, in pixels."""
HEAP = 192 * MIB
"""What libraries allocate once they compute, and what the allocator keeps although it is free."""
KEPT_BYTES = {"nothing": 0, "mask": 1, "values": FLOAT32}
"""Bytes per activation that is kept for the backward pass, see ``Step.kept``."""
TILES = (2048, 1024, 512, 256)
"""Edges in pixels that ``tile: auto`` chooses from."""
RESERVED = {"float32": 2.5, "tf32": 2.5, "bf16": 1.25}
"""What torch's allocator takes on a GPU per byte that a run asks for (docs/reliability.md)."""


class Demand(NamedTuple):
    """What determines the memory of a run.

    Attributes:
        size: (H, W) of the image.
        style_sizes: (H, W) of each style image.
        channels: {layer: its channels}, of the network, first to last.
        history_bytes: what each value of a pair of L-BFGS takes on the device.
        images_per_style: images whose memory the losses take for each of them.
        targets: {layer: how many times the activations of each style image are kept}.
        references: the same of the content image.
        temporaries: {layer: bytes per activation that each loss takes beside the statistics}.
        original: pixels of the larger picture as it is read.
        reserved: what the device's allocator takes per byte that a run asks for.
        tile: edge in pixels of the pieces that the image is computed in, or None.
        devices: processes that compute it, among which the pairs of L-BFGS are divided.
        on_one_memory: whether all of them take it of the same memory, as on a CPU.
    """

    size: tuple[int, int]
    style_sizes: Sequence[tuple[int, int]]
    channels: Mapping[str, int]
    needs: Needs
    history_size: int
    precision: Precision
    pooling: str
    history_bytes: int = FLOAT32
    images_per_style: int = 0
    targets: Mapping[str, int] = MappingProxyType({})
    references: Mapping[str, int] = MappingProxyType({})
    temporaries: Mapping[str, Sequence[int]] = MappingProxyType({})
    original: int = 0
    reserved: float = 1.0
    tile: int | None = None
    devices: int = 1
    on_one_memory: bool = False

    def reduced(self, factor: float) -> Demand:
        """Returns the demand with all images' edges multiplied by ``factor``, rounded down."""
        size, *style_sizes = (
            (max(1, int(factor * height)), max(1, int(factor * width)))
            for height, width in (self.size, *self.style_sizes)
        )
        return self._replace(size=size, style_sizes=style_sizes)


def estimate(demand: Demand) -> int:
    """Returns the bytes that a run adds at its peak to what its process has before."""
    image = RGB * FLOAT32 * demand.size[0] * demand.size[1]
    pairs = 2 * (demand.history_size + 1) * demand.history_bytes * image // FLOAT32
    history = pairs // demand.devices + image
    # Each style image but the first, which is among the images, and its two masks.
    styles = sum(
        FLOAT32 * (math.prod(demand.size) + (RGB + 1) * math.prod(size))
        for size in demand.style_sizes[1:]
    )
    styles += len(demand.style_sizes) * demand.images_per_style * image
    # A run in another precision may continue in float32, and evaluates its result in it: a second
    # objective, made when the history is there.
    second = demand.precision != "float32"
    targets = _target_bytes(demand, demand.references, demand.size) + sum(
        _target_bytes(demand, demand.targets, size) for size in demand.style_sizes
    )
    optimising = (TILED_IMAGES if demand.tile else IMAGES) * image + history
    evaluations = (
        optimising + _evaluation_bytes(demand, demand.size, of_style=False),
        *(
            (optimising if second else FIRST_IMAGES * image)
            + _evaluation_bytes(demand, size, of_style=True)
            for size in demand.style_sizes
        ),
    )
    run = _weight_bytes(demand) + styles + (1 + second) * targets + max(evaluations)
    run *= demand.devices if demand.on_one_memory else 1
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


def _target_bytes(demand: Demand, counts: Mapping[str, int], size: tuple[int, int]) -> int:
    """Returns the bytes of an image's targets that are as large as its activations."""
    activations = 0
    for layer, count in counts.items():
        height, width = (edge >> (LAYERS[layer].block - 1) for edge in size)
        activations += count * demand.channels[layer] * height * width
    return FLOAT32 * activations


def _evaluation_bytes(demand: Demand, size: tuple[int, int], of_style: bool) -> int:
    """Returns the peak: the inputs of stages, and what the largest piece takes.

    Of a style image no gradient is computed.
    """
    steps = forward_steps(list(demand.channels), demand.needs)
    width = BFLOAT16 if demand.precision == "bf16" and demand.tile else FLOAT32
    whole, largest = 0, 0
    channels = RGB
    for stage in divided(steps, size, demand.tile):
        if stage.block > 1:
            height, breadth = (edge >> (stage.block - 1) for edge in size)
            whole += (1 if of_style else 2) * channels * height * breadth * width
        piece = max((piece.outer.size for piece in stage.pieces), key=math.prod)
        peak, kept = _piece_bytes(demand, stage, channels, piece, of_style)
        largest = max(largest, peak)
        # A stage of one piece keeps what its gradient needs while the next ones are computed.
        whole += 0 if of_style or len(stage.pieces) > 1 or not stage.ends_pooled else kept
        channels = demand.channels[stage.steps[-1].layer]
    return whole + largest


def _piece_bytes(
    demand: Demand, stage: Stage, channels: int, size: tuple[int, int], of_style: bool
) -> tuple[int, int]:
    """Returns the peak of a piece, and what is kept of it for the backward pass.

    That is a layer's input and output, and what is kept of it and of those before. The losses
    measure a style image one after another, layer by layer, when its statistics are there.
    """
    (height, width), before = size, channels
    kept, peak, largest = 0, 0, 0
    for step in stage.steps:
        channels, added = demand.channels[step.layer], 0
        if step.pooled:
            height, width = height // 2, width // 2
            added += before * height * width * INT64 if demand.pooling == "max" else 0
        positions = height * width
        added += channels * positions * KEPT_BYTES[step.kept]
        for kind in step.statistics:  # and its target
            values = math.prod(statistic(kind).shape(channels, height, width))
            added += (1 if of_style else 2) * values * FLOAT32
        temporaries = demand.temporaries.get(step.layer, ())
        if of_style:
            largest = max(largest, max(temporaries, default=0) * channels * positions)
        else:
            # Each further style is compared with the activations in two tensors of their size.
            further = (len(demand.style_sizes) - 1) * demand.targets.get(step.layer, 0)
            added += (sum(temporaries) + 2 * FLOAT32 * further) * channels * positions
        computed = (before + channels) * positions * FLOAT32
        peak = max(peak, kept + computed + (0 if of_style else added))
        before, kept = channels, kept + added
    return max(peak, kept + largest), kept


def demands(settings: Experiment, device: torch.device, precision: Precision) -> list[Demand]:
    """Returns the demand of each phase of an experiment; ``tile: auto`` is not tiled."""
    reserved = RESERVED[precision] if device.type == "cuda" else 1.0
    terms = settings.terms()
    targets: Counter[str] = Counter()
    references: Counter[str] = Counter()
    temporaries: defaultdict[str, list[int]] = defaultdict(list)
    for term in terms:
        if isinstance(term, LayerTerm):
            counts = targets if isinstance(term, StyleTerm) else references
            counts.update(dict.fromkeys(term.part_weights, int(term.keeps_activations)))
            for layer in term.part_weights:
                temporaries[layer].append(term.temporaries)
    original = max(math.prod(picture_size(name)) for name in settings.images.values())
    found = []
    for phase in phases_of(settings):
        edges = sizes(settings, phase.size)
        channels, pooling = read_channels(phase.network)
        found.append(
            Demand(
                size=edges.pop("content"),
                style_sizes=list(edges.values()),
                channels=channels,
                needs=merged_needs(terms),
                history_size=settings.lbfgs.history_size,
                precision=precision,
                pooling=pooling,
                history_bytes=_history_bytes(settings, device),
                images_per_style=sum(term.images_per_style for term in terms),
                targets=targets,
                references=references,
                temporaries=temporaries,
                original=original,
                reserved=reserved,
                tile=None if settings.tile == "auto" else settings.tile,
                devices=settings.devices,
                on_one_memory=device.type == "cpu",
            )
        )
    return found


def _history_bytes(settings: Experiment, device: torch.device) -> int:
    if settings.lbfgs.history_on_host and device.type != "cpu":
        return 0
    return BFLOAT16 if settings.lbfgs.history_precision == "bf16" else FLOAT32


def choose_tiles(
    settings: Experiment, device: torch.device, precision: Precision
) -> dict[str, int | None]:
    """Returns {phase: the edge of its tiles, or None}: with ``tile: auto`` the largest that fits.

    Several devices take the largest that has a tile for each of them in each stage.

    Raises:
        UserError: a phase takes more memory than the device has free.
    """
    free, tiles = available(device), {}
    choices: Sequence[int | None] = [None]
    if settings.tile == "auto" and all(term.tileable for term in settings.terms()):
        choices = [None, *TILES]
    for phase, demand in zip(
        phases_of(settings), demands(settings, device, precision), strict=True
    ):
        edge = max(demand.size) if settings.size_edge == "long" else min(demand.size)
        tiled = [demand._replace(tile=tile or demand.tile) for tile in choices]
        if settings.devices > 1:
            tiled = [each for each in tiled if _occupies_all(each)] or tiled
        fitting = [each for each in tiled if estimate(each) <= free]
        tiles[phase.name] = fitting[0].tile if fitting else None
        if not fitting:
            check_fits(tiled[-1], free, edge)
    return tiles


def _occupies_all(demand: Demand) -> bool:
    """Returns whether each device has a tile in each stage."""
    stages = divided(forward_steps(list(demand.channels), demand.needs), demand.size, demand.tile)
    return min(len(stage.pieces) for stage in stages) >= demand.devices


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
    tiled = f" in tiles of {demand.tile}" if demand.tile else ""
    raise UserError(
        f"{width}x{height} pixels{tiled} take {needed / GIB:.1f} GiB of memory, and "
        f"{free / GIB:.1f} GiB are free. "
        + (f"What fits: {remedies}" if remedies else "Close what else takes memory")
    )
