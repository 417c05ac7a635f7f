"""Loss curves of a run, computed for ``templates/losses.svg``.

matplotlib would take 0.1 s to draw the curves of each experiment.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from pipeline.experiments.results import WEIGHTED, Results

WIDTH, HEIGHT = 640, 440
"""Size of the axes in half CSS pixels, so that integers are precise enough for coordinates."""
LARGEST_SPAN = 8
"""Largest number of powers of ten on an axis; losses below that consist of rounding errors."""
MARGIN = 0.16
"""Space above and below the curves, in powers of ten."""


def loss_plots(results: Results) -> list[dict[str, Any]]:
    """Returns the plots of the loss terms and of their parts, without those that are empty."""
    history = results.history
    plots = {
        "Total loss and its terms": {term: history[term] for term in results.terms},
        "Weighted parts of the terms": {part: history[part + WEIGHTED] for part in results.parts},
    }
    drawn = (plot_losses(title, history["evaluation"], losses) for title, losses in plots.items())
    return [plot for plot in drawn if plot]


def plot_losses(
    title: str, evaluations: Sequence[float], losses: Mapping[str, Sequence[float]]
) -> dict[str, Any] | None:
    """Returns a plot of losses on a logarithmic axis, or None if none has a positive value.

    Values that are not positive are left out, and so are losses that have no others: the content
    loss at a start from the content image is 0, which has no place on the axis.

    ``evaluations`` are the numbers of at least one, increasing, and a loss has a value for each.
    ``x_ticks`` and ``y_ticks`` of the plot are {label: coordinate}, and ``curves`` are {name: the
    commands of an SVG path}.
    """
    logarithms = {
        name: [math.log10(value) if 0 < value < math.inf else None for value in values]
        for name, values in losses.items()
    }
    drawn = [value for curve in logarithms.values() for value in curve if value is not None]
    if not drawn:
        return None
    margin = 0.03 * (evaluations[-1] - evaluations[0]) or 1
    left, right = evaluations[0] - margin, evaluations[-1] + margin
    top = max(drawn) + MARGIN
    bottom = max(min(drawn) - MARGIN, top - LARGEST_SPAN)

    def x(evaluation: float) -> int:
        return round((evaluation - left) / (right - left) * WIDTH)

    def y(logarithm: float) -> int:
        return round((top - logarithm) / (top - bottom) * HEIGHT)

    curves = {}
    for name, curve in logarithms.items():
        both = zip(evaluations, curve, strict=True)
        if path := _path([None if value is None else (x(at), y(value)) for at, value in both]):
            curves[name] = path
    return {
        "title": title,
        "x_ticks": {tick: x(tick) for tick in _linear_ticks(left, right)},
        "y_ticks": {f"{10**tick:g}": y(tick) for tick in _logarithmic_ticks(bottom, top)},
        "curves": curves,
    }


def _path(points: Sequence[tuple[int, int] | None]) -> str:
    """Returns the commands of a path, interrupted at None; one point alone becomes a dot."""
    commands, previous = "", None
    for point in points:
        if point and point != previous:
            x, y = point
            commands += f"L{x} {y}" if previous else f"M{x} {y}h0"
        previous = point
    return commands


def _linear_ticks(left: float, right: float) -> list[int]:
    """Returns up to nine round integers between two numbers."""
    steps = (factor * 10**exponent for exponent in count() for factor in (1, 2, 5))
    step = next(step for step in steps if (right - left) / step < 8)
    return list(range(math.ceil(left / step) * step, math.floor(right) + 1, step))


def _logarithmic_ticks(bottom: float, top: float) -> list[float]:
    """Returns the logarithms between two numbers that belong to round numbers."""
    factors = (1, 2, 3, 5) if top - bottom < 2 else (1,)
    exponents = range(math.floor(bottom), math.ceil(top))
    ticks = [exponent + math.log10(factor) for exponent in exponents for factor in factors]
    return [tick for tick in ticks if bottom <= tick <= top]
