"""How many experiments a machine has room for, and the memory and GPU share that each needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from pipeline.config.plan import Plan
from pipeline.config.schema import Experiment

if TYPE_CHECKING:
    import torch

    from pipeline.runtime.precision import Precision

WORKER_MEMORY = 2**29
"""Bytes that a worker takes beside its experiment: imported packages and W&B. 370 MiB were seen."""
GPU_WORKER_MEMORY = 2**30
"""Bytes that CUDA takes of a GPU for each worker; 750 MiB were seen."""
GPU_WORKERS = 8
"""Workers that share a GPU, at most. On an H200, for images of 256 pixels, four made 2.1 times as
many a second as one, and eight 2.7 times."""


class Gpu(NamedTuple):
    """A GPU: its bytes of memory, and the precision that ``auto`` has there."""

    memory: int
    precision: Precision


def count_workers(plans: Collection[Plan]) -> int:
    """Returns how many of the experiments the cores and the memory of their device have room for.

    Experiments on different devices, on several, or on one that cannot be shared run one after
    another.
    """
    if len(plans) == 1 or any(plan.settings.devices > 1 for plan in plans):
        return 1
    # torch is imported for this alone, and not where nothing is computed.
    from pipeline.runtime.device import available, find_device, find_precision

    devices = {find_device(plan.settings.device) for plan in plans}
    device = devices.pop()
    if devices or device.type not in ("cpu", "cuda"):
        return 1
    needed = max(
        _needed(settings, device, find_precision(settings.precision, device))
        for settings in (plan.settings for plan in plans)
    )
    threads = max(plan.settings.threads or 1 for plan in plans)
    most, beside = count_cores() // threads, WORKER_MEMORY
    if device.type == "cuda":
        most, beside = min(most, GPU_WORKERS), GPU_WORKER_MEMORY
    return max(1, min(most, available(device) // (needed + beside)))


def count_cores() -> int:
    """Returns how many cores this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_on_cpu(settings: Experiment) -> int:
    """Returns the bytes that a worker takes of a machine's memory for an experiment on the CPU."""
    import torch

    # bfloat16 takes more: the machine that computes it may have it.
    return _needed(settings, torch.device("cpu"), "bf16") + WORKER_MEMORY


def share_of_gpu(settings: Experiment, gpu: Gpu) -> float:
    """Returns the share of a GPU that an experiment takes by its memory, or how many it needs."""
    import torch

    if settings.devices > 1:
        return float(settings.devices)
    precision = gpu.precision if settings.precision == "auto" else settings.precision
    needed = _needed(settings, torch.device("cuda"), precision) + GPU_WORKER_MEMORY
    return round(min(1.0, max(1 / GPU_WORKERS, needed / gpu.memory)), 4)


def _needed(settings: Experiment, device: torch.device, precision: Precision) -> int:
    from pipeline.transfer.memory import demands, estimate

    return max(estimate(demand) for demand in demands(settings, device, precision))
