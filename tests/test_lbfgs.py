"""The bound on a step of L-BFGS."""

from __future__ import annotations

import itertools

import pytest
import torch

from pipeline.lbfgs import BoundedLBFGS


def after(steps: int, largest_step: float) -> tuple[list[torch.Tensor], list[float]]:
    """Returns the points and losses of a quartic that is flat where it starts."""
    point = torch.tensor([0.5, -0.4, 0.3], requires_grad=True)
    optimizer = BoundedLBFGS(
        point, largest_step, history_size=5, tolerance_grad=0, tolerance_change=0
    )
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


def test_shortened_step_is_the_curvature_that_is_remembered() -> None:
    """The pair (s, y) of the next step must hold the step that was taken."""
    point = torch.zeros(4, requires_grad=True)
    optimizer = BoundedLBFGS(point, 0.1, lr=1.0, tolerance_grad=0, tolerance_change=0)
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
    torch.testing.assert_close(state["old_stps"][0], positions[1] - positions[0])
