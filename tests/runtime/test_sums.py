"""What is computed does not depend on how many threads compute it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.networks.frozen.gram_matrix import GramMatrix
from pipeline.optim.lbfgs import LBFGS
from pipeline.runtime.summation import ROW, total

THREADS = 1, 2, 3, 4, 7


def by_threads(compute: Callable[[], Tensor]) -> list[Tensor]:
    """Returns the results with each number of threads."""
    results = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        results.append(compute())
    return results


def uneven(count: int) -> Tensor:
    """Returns values whose sum is rounded in every order differently."""
    values = torch.randn(count, generator=torch.Generator().manual_seed(0))
    return values * torch.logspace(-3, 3, count)


@pytest.mark.parametrize("count", [0, 1, 5, ROW - 1, ROW, ROW + 1, 100_000, ROW * (ROW + 3) + 11])
def test_total_is_the_sum_and_the_same_with_any_number_of_threads(count: int) -> None:
    values = uneven(count)
    first, *others = by_threads(lambda: total(values))
    assert all(torch.equal(first, other) for other in others)
    exact = float(values.double().sum())
    assert float(first) == pytest.approx(exact, abs=1e-6 * float(values.abs().sum()))


def test_sum_of_torch_depends_on_the_number_of_threads() -> None:
    """Else this module would be of no use."""
    sums = by_threads(lambda: uneven(1_000_000).sum())
    assert not all(torch.equal(sums[0], other) for other in sums[1:])


def test_total_takes_any_layout_and_can_be_differentiated() -> None:
    maps = uneven(2 * 9000).view(1, 2, 90, 100).contiguous(memory_format=torch.channels_last)
    maps.requires_grad_()
    total(maps * 3).backward()
    assert maps.grad is not None
    assert torch.equal(maps.grad, torch.full_like(maps, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(64, 256, 256), (128, 128, 128), (64, 181, 240), (96, 24, 31)])
def test_gram_matrix_is_the_same_with_any_number_of_threads(
    size: tuple[int, int, int], dtype: torch.dtype
) -> None:
    maps = uneven(2 * 64 * 2**16)[: math.prod(size)].view(1, *size).to(dtype)
    maps = maps.contiguous(memory_format=torch.channels_last)
    first, *others = by_threads(lambda: GramMatrix().collect(maps))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("scaling", ["newest", "mean"])
def test_steps_of_lbfgs_are_the_same_with_any_number_of_threads(scaling: str) -> None:
    target, curved = uneven(60_000), torch.logspace(0, 2, 60_000)

    def after_some_steps() -> Tensor:
        point = torch.zeros(60_000, requires_grad=True)
        optimizer = LBFGS(point, 0.1, history_size=5, scaling=scaling)  # type: ignore[arg-type]

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = total(curved * (point - target).square()) / 2
            loss.backward()
            return loss

        for _ in range(12):
            optimizer.step(closure)
        return point.detach()

    first, *others = by_threads(after_some_steps)
    assert all(torch.equal(first, other) for other in others)
