"""What the network's convolutions are computed in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

Precision = Literal["float32", "tf32", "bf16"]


def fastest_precision(device: torch.device) -> Precision:
    """Returns what computes fastest on a device.

    bf16 on processors that multiply it, and on GPUs that do; ``benchmarks.speed`` measures it
    there. Where it stalls near a minimum the run goes on in float32 (``callbacks.Refinement``).
    """
    if device.type == "cuda":
        return "bf16" if gpu_has_bf16() else "tf32"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "float32"


@cache
def cpu_has_bf16() -> bool:
    """Returns whether the processor multiplies bfloat16, and does not only imitate it."""
    abilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def gpu_has_bf16() -> bool:
    """Returns whether the GPU multiplies bfloat16, and does not only imitate it."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def has_cudnn(values: Tensor) -> bool:
    """Returns whether they are where NVIDIA's libraries, and what torch has of them alone, work."""
    return values.is_cuda and torch.version.hip is None


@contextmanager
def allowing(precision: Precision) -> Iterator[None]:
    """Lets cuDNN round to TF32 inside the block, or forbids it."""
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before
