"""What is computed does not depend on how many threads compute it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import few_or_many_threads, objective_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.losses.objective import MINIMISED
from pipeline.losses.pixel_terms.spectrum import SpectrumLoss
from pipeline.losses.term import WHOLE
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.frozen.gram_matrix import (
    add_gram_matrix_gradient,
    gram_matrix_of,
    mean_of,
)
from pipeline.networks.small_vgg import tapped
from pipeline.networks.vgg import down_to
from pipeline.networks.weight_files import EMBEDDED, load_small
from pipeline.optim.lbfgs import LBFGS
from pipeline.runtime.summation import ROW, product, total

THREADS = few_or_many_threads()


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
@pytest.mark.parametrize(
    "size",
    [(16, 48, 64), (32, 61, 77), (64, 181, 240), (96, 24, 31), (112, 65, 77), (512, 24, 31)],
)
def test_means_and_gram_matrix_are_the_same_with_any_number_of_threads(
    size: tuple[int, int, int], dtype: torch.dtype
) -> None:
    maps = uneven(64 * 2**16)[: math.prod(size)].view(1, *size).to(dtype)
    maps = maps.contiguous(memory_format=torch.channels_last)
    first, *others = by_threads(lambda: mean_of(maps))
    assert all(torch.equal(first, other) for other in others)
    first, *others = by_threads(lambda: gram_matrix_of(maps))
    assert all(torch.equal(first, other) for other in others)
    first, *others = by_threads(lambda: add_gram_matrix_gradient(first, None, maps))
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

        for _ in range(6):
            optimizer.step(closure)
        return point.detach()

    first, *others = by_threads(after_some_steps)
    assert all(torch.equal(first, other) for other in others)


def evaluated(network: str, precision: str, size: tuple[int, int], weights: Any) -> Tensor:
    """Returns losses and gradient of a noise image."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand((1, 3, *size), generator=generator) for _ in range(3)]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # as the stage ``backbone`` has
    of_network = weights if network == "vgg19" else tapped(load_small(EMBEDDED))
    torch.set_num_threads(threads)
    objective = objective_of(
        FrozenFeatures(down_to(of_network, ["conv5_1"]), "avg", precision),  # type: ignore[arg-type]
        (images[0], images[1]),
        content_layers=["conv4_2"],
        style_layers=["conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"],
        content_weight=0.3,
        style_weight=1.0,
        variation_weight=0.1,
        range_weight=1000.0,
    )
    image = (1.1 * images[2]).requires_grad_()
    losses = objective(image)
    (gradient,) = torch.autograd.grad(losses[MINIMISED], image)
    return torch.cat([gradient.flatten(), torch.stack(list(losses.values())).detach()])


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    ("network", "size"),
    [("vgg19-small", (64, 43)), ("vgg19-small", (128, 160)), ("vgg19", (48, 64))],
)
def test_evaluation_is_the_same_with_any_number_of_threads(
    network: str, size: tuple[int, int], precision: str, weights: dict[str, Tensor]
) -> None:
    first, *others = by_threads(lambda: evaluated(network, precision, size, weights))
    assert all(torch.equal(first, other) for other in others)


class InnerDimensions(TorchDispatchMode):
    """Collects the number of terms of the sums in matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        name = function.name().removeprefix("aten::").partition(".")[0].rstrip("_")
        position = {"mm": 0, "bmm": 0, "mv": 0, "addmm": 1, "baddbmm": 1}.get(name)
        if position is not None:
            self.counts.add(arguments[position].shape[-1])
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_no_sum_in_a_matrix_product_is_long_enough_to_be_divided_among_threads(
    precision: str, weights: dict[str, Tensor]
) -> None:
    """Which lengths are divided depends on the processor and its library."""
    with InnerDimensions() as dimensions:
        evaluated("vgg19", precision, (64, 72), weights)
        point = torch.zeros(5_000, requires_grad=True)
        optimizer = LBFGS(point)
        for _ in range(3):
            optimizer.step(lambda: _differentiated(point))
    assert 1 < max(dimensions.counts) <= 512


def _differentiated(point: Tensor) -> Tensor:
    loss = total((point - 1).square())
    (point.grad,) = torch.autograd.grad(loss, point)
    return loss.detach()


@pytest.mark.parametrize("size", [(181, 241), (192, 256)])
def test_spectrum_loss_is_the_same_with_any_number_of_threads(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    content, style, image = (torch.rand((1, 3, *size), generator=generator) for _ in range(3))
    image.requires_grad_()

    def gradient() -> Tensor:
        term = SpectrumLoss({"spectrum_weight": 1.0})
        term.set_targets({"content": content, "style": style}, lambda *_: {})
        return torch.autograd.grad(term.parts(image, {})[WHOLE], image)[0]

    first, *others = by_threads(gradient)
    assert all(torch.equal(first, other) for other in others)


def test_matrix_product_in_blocks_is_the_product_and_so_is_its_gradient() -> None:
    left = uneven(300 * 520).view(300, 520).double()
    right = uneven(520 * 7).view(520, 7).double().requires_grad_()
    torch.testing.assert_close(product(left, right), left @ right)
    gradients = [
        torch.autograd.grad(f(left, right).square().sum(), right) for f in (product, torch.mm)
    ]
    torch.testing.assert_close(*gradients)
