"""The transfer problem that the speed benchmarks solve, and their timers."""

from __future__ import annotations

import ctypes
import gc
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.reference import PlainObjective
from pipeline.imaging.downloads import locate
from pipeline.imaging.picture_files import read_picture
from pipeline.imaging.tensors import resize, to_tensor
from pipeline.losses import make_terms
from pipeline.losses.evaluator import fastest_evaluation
from pipeline.losses.objective import Objective
from pipeline.networks.layers import LAYERS
from pipeline.networks.rescaling import rescale, rescaling_means
from pipeline.networks.shared_features import make_features
from pipeline.networks.small_vgg import tapped
from pipeline.networks.vgg import Features
from pipeline.networks.weight_files import EMBEDDED, imagenet_weights, load_small, load_weights
from pipeline.runtime.device import find_precision
from pipeline.runtime.precision import Precision
from pipeline.runtime.process_group import ALONE, ProcessGroup

STYLE = ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1")
TERMS: dict[str, Any] = {
    "content_layers": {"conv4_2": 1.0},
    "style_layers": dict.fromkeys(STYLE, 0.2),
    "content_weight": 0.3,
    "style_weight": 1.0,
}
"""The defaults of params.yaml."""
EDGE, PRODUCTS = 8192 if torch.cuda.is_available() else 2048, 4
"""Edge of the square matrices whose product is the hardware's limit, and products timed as one."""
PRODUCT_OPERATIONS = PRODUCTS * 2 * EDGE**3
KIND = ""
"""Suffix of the result files: one for GPUs, one for CPUs without bfloat16."""
if torch.cuda.is_available():
    KIND = "-gpu"
elif find_precision("auto", torch.device("cpu")) == "float32":
    KIND = "-float32"


class Problem:
    """A photograph, a painting and VGG-19 rescaled on them, at a size."""

    def __init__(self, weights: str | None, edge: int, height: int | None = None) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.size = (height or edge * 3 // 4, edge)
        self.originals = (
            _image("package:skimage/data/chelsea.png"),
            _image("data/paintings/glass.jpg"),
        )
        self.content, self.style = self.pictures()
        file = Path(weights).expanduser() if weights else imagenet_weights()
        loaded, small = load_weights(file, "torchvision"), load_small(EMBEDDED)
        pictures = [resize(_image("package:skimage/data/coffee.png"), (192, 288), "bicubic", True)]
        means, _ = rescaling_means(Features(loaded, "avg"), pictures)
        self.vgg = rescale(loaded, means)
        self.small = tapped(small, {name: means[name] for name in means if f"{name}.head" in small})

    def pictures(self, division: int = 1) -> tuple[Tensor, Tensor]:
        """Returns the content and the style image, with edges divided by ``division``."""
        size = self.size[0] // division, self.size[1] // division
        content, style = (
            resize(image, size, "bicubic", antialias=True).to(self.device)
            for image in self.originals
        )
        return content, style

    def ours(
        self,
        precision: Precision,
        network: str = "vgg",
        range_weight: float = 0.0,
        division: int = 1,
        tile: int | None = None,
        group: ProcessGroup = ALONE,
    ) -> Objective:
        features = make_features(getattr(self, network), "avg", precision, self.device, tile, group)
        images = dict(zip(("content", "style"), self.pictures(division), strict=True))
        return Objective(features, make_terms(TERMS | {"range_weight": range_weight}), images)

    def plain(self) -> PlainObjective:
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
        features = Features(self.vgg, "avg").to(self.device)
        return PlainObjective(features, self.content, self.style, **TERMS)

    def evaluations(self) -> dict[str, Callable[[], object]]:
        """Returns {name: function that evaluates loss and gradient once}."""
        plain = self.plain()
        found: dict[str, Callable[[], object]] = {"plain float32": lambda: self.gradient(plain)}
        for precision in precisions():
            objective = self.ours(precision)
            found[precision] = lambda o=objective: self.gradient(lambda x: o(x)["total"])  # type: ignore[misc]
            if self.device.type == "cuda":
                recorded = fastest_evaluation(objective, self.content)
                found[f"{precision} recorded"] = lambda r=recorded: self.gradient(  # type: ignore[misc]
                    lambda x: r(x)["total"]
                )
        return found

    def products(self, dtype: torch.dtype) -> Callable[[], object]:
        """Returns a function that does ``PRODUCT_OPERATIONS`` as matrix products."""
        square = torch.randn((EDGE, EDGE), device=self.device).to(dtype)

        def run() -> None:
            for _ in range(PRODUCTS):
                square @ square
            self.wait()

        return run

    def gradient(self, loss: Callable[[Tensor], Tensor]) -> None:
        image = self.content.clone().requires_grad_()
        loss(image).backward()  # type: ignore[no-untyped-call]
        self.wait()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def precisions() -> list[Precision]:
    """Returns the precisions that the hardware computes without emulation."""
    found: dict[str, list[Precision]] = {
        "": ["float32", "bf16"],
        "-gpu": ["float32", "tf32", "bf16"],
        "-float32": ["float32"],
    }
    return found[KIND]


def _image(source: str) -> Tensor:
    return to_tensor(read_picture(locate(source, None, Path(tempfile.gettempdir()))))


def operations(size: tuple[int, int]) -> float:
    """Returns the floating-point operations of one evaluation: two a multiply-add.

    Each convolution down to conv5_1 forward and back to its input, each Gram matrix and its
    derivative.
    """
    total = 0.0
    for layer in LAYERS.values():
        positions = (size[0] >> (layer.block - 1)) * (size[1] >> (layer.block - 1))
        total += 2 * 2 * 9 * layer.channels_in * layer.channels_out * positions
        if layer.name in STYLE:
            total += 2 * 2 * layer.channels_out**2 * positions
        if layer.name == STYLE[-1]:
            return total
    raise AssertionError


def peak_bytes(run: Callable[[], object]) -> int:
    """Returns the bytes by which a function raises this process's peak memory, or the GPU's."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # memory freed earlier must not be used again unseen
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    run()
    status = Path("/proc/self/status").read_text()
    high = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    return high * 1024 - before


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def in_turns(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Returns each one's median seconds; all run once a round, after a warm-up round."""
    times = [{name: seconds(run) for name, run in runs.items()} for _ in range(rounds + 1)][1:]
    return {name: statistics.median(each[name] for each in times) for name in runs}
