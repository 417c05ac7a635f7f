"""CUDA graphs: many small kernels, captured once and then launched together."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def cuda_graph(work: Callable[[], Result], warm_up: int) -> tuple[Callable[[], object], Result]:
    """Returns a function that does work again on the current CUDA device, and the work's results.

    The capture itself computes nothing. Each call writes into the tensors of the results.

    Args:
        work: launches kernels that read and write the same memory at each call, and reads no
            value from the device.
        warm_up: how often the work is done before the capture, in which cuDNN chooses its
            algorithms and cuBLAS its workspace. Memory that it took is freed.

    Raises:
        RuntimeError: an operation cannot be captured. With torch before 2.12 the process may then
            be unable to go on: its allocator still believes that a capture is under way.
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
        torch.cuda.set_stream(ordinary)  # after a failure, torch before 2.12 leaves its own stream
    return graph.replay, result
