"""Plots of the report: SVG without date or random identifiers, the same data, the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from pipeline.files import replacing

_STYLE: Any = {
    "svg.hashsalt": "style-transfer",
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
_DECADES = 1e-5
"""The lower end of an axis, as a fraction of the upper: below it a start is only rounding."""

_PANELS = {"total": "total loss", "content": "content loss", "style": "style loss"}


def loss_curves(histories: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Writes the curves of several runs, one panel each for total, content and style loss.

    Both weighted losses are drawn, on a logarithmic axis, against the count of evaluations.
    A loss of 0, as the content loss at a start from the content, has no place there and is left
    out.

    Args:
        histories: {experiment: {column of history.csv: its values}}.
        path: the SVG file; written atomically.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        for position, (column, title) in enumerate(_PANELS.items(), 1):
            axes = figure.add_subplot(1, len(_PANELS), position)
            for name, history in histories.items():
                drawn = [value if value > 0 else float("nan") for value in history[column]]
                axes.plot(history["evaluation"], drawn, label=name, linewidth=1.3)
            axes.set(yscale="log", title=title, xlabel="evaluations")
            low, high = axes.get_ylim()
            axes.set_ylim(bottom=max(low, high * _DECADES))
        handles, labels = figure.axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
