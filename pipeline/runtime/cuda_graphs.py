"""CUDA graphs: work of many small kernels, recorded once and then done again by one launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def cuda_graph(work: Callable[[], Result], warm_up: int) -> tuple[Callable[[], object], Result]:
    """Records on the current CUDA device, and gives back what memory the warm-up took.

    Args:
        work: asks nothing of the device, and works on the same memory each time.
        warm_up: how often to do it before: cuDNN chooses its algorithms, cuBLAS its workspace. To
            record is not to do.

    Returns:
        What does it again, and the tensors in which that leaves its results.

    Raises:
        RuntimeError: an operation cannot be recorded. torch before 2.12 may then be unable to go
            on: its allocator still believes in the recording.
    """
    ordinary = torch.cuda.current_stream()
    if warm_up:
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(ordinary)
        with torch.cuda.stream(stream):
            for _ in range(warm_up):
                work()
        ordinary.wait_stream(stream)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = work()
    finally:
        torch.cuda.set_stream(ordinary)  # where it failed, torch before 2.12 leaves its own
    return graph.replay, result
