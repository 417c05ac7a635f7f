"""The precisions of the network's convolutions, and which of them a device has."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

Precision = Literal["float32", "tf32", "bf16"]


@cache
def cpu_has_bf16() -> bool:
    """Returns whether the processor has instructions that multiply bfloat16."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def gpu_has_bf16() -> bool:
    """Returns whether the GPU has instructions that multiply bfloat16."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def has_cudnn(values: Tensor) -> bool:
    """Returns whether a tensor is on an NVIDIA GPU, where torch can use cuDNN and cuBLAS."""
    return values.is_cuda and torch.version.hip is None


@contextmanager
def allowing(precision: Precision) -> Iterator[None]:
    """Lets cuDNN's convolutions use TF32 inside the block, or forbids it."""
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before
