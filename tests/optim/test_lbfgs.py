"""L-BFGS: torch's iterates, a bound on a step, and a state that can be saved and loaded."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.optim import history
from pipeline.optim.lbfgs import LBFGS


def after(steps: int, largest_step: float) -> tuple[list[torch.Tensor], list[float]]:
    """Returns the points and losses of a quartic that is flat where it starts."""
    point = torch.tensor([0.5, -0.4, 0.3], requires_grad=True)
    optimizer = LBFGS(point, largest_step, history_size=5, tolerance_grad=0, tolerance_change=0)
    points, losses = [point.detach().clone()], []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = ((point - 3) ** 4).sum() * 1e-4
        loss.backward()
        return loss

    for _ in range(steps):
        losses.append(float(optimizer.step(closure).detach()))
        points.append(point.detach().clone())
    return points, losses


@pytest.mark.parametrize("largest_step", [0.01, 0.2])
def test_no_step_is_longer_than_asked(largest_step: float) -> None:
    points, losses = after(12, largest_step)
    lengths = [float((b - a).abs().mean()) for a, b in itertools.pairwise(points)]
    assert max(lengths) == pytest.approx(largest_step, rel=1e-4)
    assert losses == sorted(losses, reverse=True)


def test_bound_that_is_never_reached_changes_nothing() -> None:
    bounded, _ = after(8, 1e6)
    free, _ = after(8, float("inf"))
    assert all(torch.equal(a, b) for a, b in zip(bounded, free, strict=True))


def test_curvature_is_measured_along_the_shortened_step() -> None:
    """The pair (s, y) of the next step must hold the step that was taken."""
    point = torch.zeros(4, requires_grad=True)
    optimizer = LBFGS(point, 0.1, lr=1.0, tolerance_grad=0, tolerance_change=0)
    target = torch.tensor([4.0, 3.0, 2.0, 1.0])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (point - target).square().sum() / 2
        loss.backward()
        return loss

    positions = [point.detach().clone()]
    for _ in range(2):
        optimizer.step(closure)
        positions.append(point.detach().clone())
    state = optimizer.state[point]
    torch.testing.assert_close(state["rows"][0], positions[1] - positions[0])


def valley(
    make: Callable[[torch.Tensor], torch.optim.Optimizer], steps: int, factor: float = 1.0
) -> tuple[torch.Tensor, list[float]]:
    """Returns point and losses of a chain of curved valleys (Rosenbrock 1960)."""
    point = torch.linspace(-1, 1, 60, dtype=torch.float64).requires_grad_()
    optimizer = make(point)
    return point, descend(point, optimizer, steps, factor)


def rosenbrock(point: torch.Tensor) -> torch.Tensor:
    bends = point[1:] - point[:-1].square()
    return (20 * bends.square()).sum() + (1 - point).square().sum()


def descend(
    point: torch.Tensor, optimizer: torch.optim.Optimizer, steps: int, factor: float = 1.0
) -> list[float]:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = factor * rosenbrock(point)
        loss.backward()
        return loss

    return [float(optimizer.step(closure).detach()) for _ in range(steps)]


EXACT = {"history_size": 6, "tolerance_grad": 0, "tolerance_change": 0}


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_iterates_are_those_of_torch(line_search: str | None) -> None:
    options = {**EXACT, "lr": 0.8, "line_search_fn": line_search, "max_eval": 25}
    theirs, expected = valley(lambda p: torch.optim.LBFGS([p], max_iter=1, **options), 40)
    ours, losses = valley(lambda p: LBFGS(p, **options), 40)
    assert expected[-1] < expected[0] / 10
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-6, atol=0)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("factor", [2.0**-200, 2.0**-40, 2.0**-9, 2.0**40, 2.0**200])
@pytest.mark.parametrize(
    "options", [{}, {"scaling": "mean"}, {"line_search_fn": "strong_wolfe", "max_eval": 25}]
)
def test_factor_of_the_loss_changes_no_iterate(options: dict[str, Any], factor: float) -> None:
    """A power of two, so that none is rounded otherwise."""
    expected, losses = valley(lambda p: LBFGS(p, 0.3, **EXACT, **options), 30)
    ours, scaled = valley(lambda p: LBFGS(p, 0.3, **EXACT, **options), 30, factor)
    assert torch.equal(ours, expected)
    assert scaled == [factor * loss for loss in losses]
    assert losses[-1] < losses[0] / 10


def test_scaling_by_the_mean_is_a_multiple_of_that_of_all_pairs() -> None:
    """The step is that of the inverse Hessian written out: γ·I, updated by each pair in turn."""
    history, seen, factors = 3, [], []

    def make(point: torch.Tensor) -> LBFGS:
        optimizer = LBFGS(point, history_size=history, scaling="mean", tolerance_grad=0)
        step = optimizer.step

        def watched(closure: Callable[[], torch.Tensor]) -> torch.Tensor:
            before = point.detach().clone()
            loss = step(closure)
            assert point.grad is not None
            seen.append((before, point.grad.clone(), point.detach() - before))
            factors.append(float(optimizer.state[point]["factor"]))
            return loss

        optimizer.step = watched  # type: ignore[method-assign, assignment]
        return optimizer

    valley(make, 8)
    pairs = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(seen)][-history:]
    assert all(s @ y > 0 for s, y in pairs)
    identity = torch.eye(60, dtype=torch.float64)
    inverse = factors[-1] * sum(s @ y / (y @ y) for s, y in pairs) / history * identity
    for s, y in pairs:
        off = identity - torch.outer(y, s) / (s @ y)
        inverse = off.T @ inverse @ off + torch.outer(s, s) / (s @ y)
    _, gradient, step = seen[-1]
    torch.testing.assert_close(step, -inverse @ gradient, rtol=1e-6, atol=1e-9)


def test_factor_of_the_mean_is_halved_by_a_loss_that_rises_and_grows_back() -> None:
    point = torch.tensor([1.0, 1.0], requires_grad=True)
    optimizer = LBFGS(point, scaling="mean")
    factors = []
    for loss in (5.0, 4.0, 6.0, 7.0, 8.0, 9.0, 9.0, 8.0):

        def closure(loss: float = loss) -> torch.Tensor:
            point.grad = point.detach() * torch.tensor([1.0, 3.0])
            return torch.tensor(loss)

        optimizer.step(closure)
        factors.append(float(optimizer.state[point]["factor"]))
    assert factors == [2, 2, 1, 0.5, 0.25, 0.25, 0.3125, 0.390625]


def test_pair_without_curvature_is_not_remembered() -> None:
    """Where the loss is concave torch keeps its old pairs, and so do we."""

    def run(make: Callable[[torch.Tensor], torch.optim.Optimizer]) -> torch.Tensor:
        point = torch.tensor([0.1, 2.0], dtype=torch.float64, requires_grad=True)
        optimizer = make(point)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = point[1].square() + point[0].cos()
            loss.backward()
            return loss

        for _ in range(12):
            optimizer.step(closure)
        return point.detach()

    theirs = run(lambda p: torch.optim.LBFGS([p], max_iter=1, lr=0.3, **EXACT))
    ours = run(lambda p: LBFGS(p, lr=0.3, **EXACT))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_run_continues_from_a_saved_state_to_the_bit() -> None:
    expected, losses = valley(lambda p: LBFGS(p, **EXACT), 20)
    begun = torch.linspace(-1, 1, 60, dtype=torch.float64).requires_grad_()
    optimizer = LBFGS(begun, **EXACT)
    assert descend(begun, optimizer, 11) == losses[:11]
    stored = io.BytesIO()
    torch.save({"point": begun.detach(), "optimizer": optimizer.state_dict()}, stored)
    stored.seek(0)
    saved = torch.load(stored, weights_only=True)
    resumed = saved["point"].requires_grad_()
    optimizer = LBFGS(resumed, **EXACT)
    optimizer.load_state_dict(saved["optimizer"])
    assert descend(resumed, optimizer, 9) == losses[11:]
    assert torch.equal(resumed, expected)


def captured(work: Callable[[], None], _: int) -> tuple[Callable[[], None], None]:
    """Captures as a CUDA graph does: without doing the work."""
    return work, None


@pytest.mark.parametrize("scaling", ["newest", "mean"])
def test_steps_with_the_history_of_a_gpu_are_the_same(scaling: Any) -> None:
    def make(point: torch.Tensor) -> LBFGS:
        optimizer = LBFGS(point, 0.3, scaling=scaling, **EXACT)
        optimizer.capture = captured
        return optimizer

    expected, losses = valley(lambda p: LBFGS(p, 0.3, scaling=scaling, **EXACT), 30)
    ours, by_replays = valley(make, 30)
    torch.testing.assert_close(torch.tensor(by_replays), torch.tensor(losses), rtol=1e-6, atol=0)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scaling", ["newest", "mean"])
def test_history_in_parts_is_the_same_and_in_bf16_descends_as_far(
    scaling: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "PART", 3)
    monkeypatch.setattr(LBFGS, "_dtype", torch.float32)
    options = {**EXACT, "scaling": scaling}
    expected, losses = valley(lambda p: LBFGS(p, 0.3, **options), 30)
    half = {**options, "history_precision": "bf16"}
    ours, by_parts = valley(lambda p: LBFGS(p, 0.3, **half), 30)
    torch.testing.assert_close(torch.tensor(by_parts), torch.tensor(losses), rtol=1e-5, atol=0)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    monkeypatch.undo()
    _, rounded = valley(lambda p: LBFGS(p, 0.3, **half), 30)
    assert rounded != losses
    assert rounded[-1] < 2 * losses[-1] < 0.5 * losses[0]


def test_pairs_are_stored_where_and_as_they_are_asked_for() -> None:
    point = torch.ones(8, device="meta", requires_grad=True)
    optimizer = LBFGS(point, history_size=3, history_precision="bf16", history_on_host=True)
    rows = optimizer.history.rows
    assert (rows.shape, rows.dtype, rows.device.type) == ((8, 8), torch.bfloat16, "cpu")
    assert optimizer.history.gradient.device.type == "meta"
    assert optimizer.capture is None


@pytest.mark.parametrize("options", [{}, {"scaling": "mean", "tolerance_grad": 1e-9}])
def test_captured_step_reads_no_value_from_the_device(options: dict[str, Any]) -> None:
    """A tensor on the device ``meta`` has no values, so that a read of one raises."""
    points = torch.empty((3, 8), device="meta", requires_grad=True)
    optimizer = LBFGS(points, **options)
    optimizer.capture = captured

    def closure() -> torch.Tensor:
        points.grad = torch.empty_like(points)
        return torch.empty((), device="meta")

    for _ in range(4):
        optimizer.step(closure)
    assert optimizer._replay
    with pytest.raises(RuntimeError, match="meta"):
        int(optimizer.state[points]["outcome"])


def test_gradient_of_zero_moves_nothing() -> None:
    point = torch.zeros(3, requires_grad=True)
    optimizer = LBFGS(point)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = point.square().sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == 0
    assert torch.equal(point, torch.zeros(3))
