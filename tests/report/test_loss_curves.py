"""Loss curves: the commands of their paths, and round numbers on their axes."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest

from pipeline.report.loss_curves import HEIGHT, WIDTH, plot_losses


def plot(**losses: list[float]) -> dict[str, Any]:
    count = len(next(iter(losses.values())))
    result = plot_losses("Losses", [float(number + 1) for number in range(count)], losses)
    assert result is not None
    return result


def test_equal_factors_are_equal_distances() -> None:
    path = plot(total=[100.0, 10.0, 1.0])["curves"]["total"]
    xs, ys = zip(*(part.split() for part in path[1:].replace("h0", "").split("L")), strict=True)
    for places in (xs, ys):
        before, after = (int(one) - int(other) for one, other in pairwise(places))
        assert abs(before - after) <= 1


def test_values_that_are_not_positive_interrupt_a_curve() -> None:
    path = plot(total=[9.0, 0.0, 5.0, 4.0, math.nan, 3.0, -1.0, math.inf, 2.0])["curves"]["total"]
    assert path.count("M") == 4
    assert path.count("L") == 1


def test_losses_without_positive_values_are_left_out() -> None:
    assert set(plot(total=[2.0, 1.0], content=[0.0, 0.0])["curves"]) == {"total"}
    assert plot_losses("Parts", [1.0], {"content": [0.0]}) is None
    assert plot_losses("Parts", [1.0], {}) is None


def test_single_evaluation_is_a_dot() -> None:
    path = plot(total=[2.0])["curves"]["total"]
    assert path == f"M{WIDTH // 2} {HEIGHT // 2}h0"


@pytest.mark.parametrize("count", [1, 2, 3, 10, 199, 200, 5000])
@pytest.mark.parametrize("smallest", [1e-300, 1e-9, 0.9, 0.2])
def test_axes_have_a_few_round_numbers_within_them(count: int, smallest: float) -> None:
    axes = plot(total=[1.0] * count, content=[smallest] * count)
    for ticks, length in (("x_ticks", WIDTH), ("y_ticks", HEIGHT)):
        assert 1 <= len(axes[ticks]) <= 9
        assert all(0 <= place <= length for place in axes[ticks].values())
    leading = {f"{float(tick):.3e}".split("e")[0] for tick in axes["y_ticks"]}
    assert leading <= {"1.000", "2.000", "3.000", "5.000"}
