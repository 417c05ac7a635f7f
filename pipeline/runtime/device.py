"""The device and the precision that an experiment gets, and the memory that is free."""

from contextlib import suppress
from pathlib import Path
from typing import Literal

import psutil
import torch

from pipeline.errors import UserError
from pipeline.runtime.precision import Precision, cpu_has_bf16, gpu_has_bf16

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux tells the memory limit of a container."""


def find_device(requested: str) -> torch.device:
    """Returns the device for the setting ``device``; ``auto`` is a CUDA GPU if there is one.

    Raises:
        UserError: torch does not find the device on this machine.
    """
    if requested == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=requested).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device is {requested!r}, but torch finds none here. Use 'auto' or 'cpu'"
        ) from error


def find_precision(requested: Precision | Literal["auto"], device: torch.device) -> Precision:
    """Returns the precision of the network's convolutions for the setting ``precision``.

    ``auto`` is the fastest that the device has, as ``benchmarks.speed`` measures it.

    Raises:
        UserError: TF32 on anything but a CUDA GPU, or bf16 on a GPU that does not have it.
    """
    if requested == "auto" and device.type == "cuda":
        return "bf16" if gpu_has_bf16() else "tf32"
    if requested == "auto":
        return "bf16" if device.type == "cpu" and cpu_has_bf16() else "float32"
    if requested == "tf32" and device.type != "cuda":
        raise UserError(
            f"precision is 'tf32', which only a CUDA GPU has; the device is {device.type}. "
            "Use 'auto', 'float32' or 'bf16'"
        )
    if requested == "bf16" and device.type == "cuda" and not gpu_has_bf16():
        raise UserError(
            "precision is 'bf16', which this GPU does not have. Use 'auto', 'float32' or 'tf32'"
        )
    return requested


def available(device: torch.device) -> int:
    """Returns the bytes of memory that are free on a GPU, or for this process on the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free: int = psutil.virtual_memory().available
    for folder, limit, used in (
        (CGROUP, "memory.max", "memory.current"),
        (CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # not in a container, or one without a limit
            taken = int((folder / used).read_text()) - _reclaimable(folder)
            free = min(free, int((folder / limit).read_text()) - taken)
    return free


def _reclaimable(folder: Path) -> int:
    """Returns the bytes of cached files, which the system would give up."""
    lines = (folder / "memory.stat").read_text().splitlines()
    stat = {name: int(count) for name, count in map(str.split, lines)}
    names = "inactive_file", "active_file"
    return sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in names)
