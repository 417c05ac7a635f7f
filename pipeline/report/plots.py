"""Plots of the report: SVG without date or random identifiers, the same data, the same bytes."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from pipeline.files import write_text
from pipeline.losses import term_names

_STYLE: Any = {
    "svg.hashsalt": "style-transfer",
    "svg.fonttype": "none",
    "path.simplify_threshold": 0.5,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
_DECADES = 1e-8
"""The lower end of an axis, as a fraction of the upper: below it a start is only rounding."""

_PATH, _FINER = re.compile(r' d="[^"]*"'), re.compile(r"(\.\d\d)\d+")
"""An SVG's paths, and in them what is finer than a hundredth of a point: a third of the file."""

_WEIGHTED = "_weighted"


def loss_curves(history: Mapping[str, Sequence[float]], path: Path) -> None:
    """Writes the curves of one run: the total and its terms, and beside them each layer's part.

    All are weighted, on a logarithmic axis, against the count of evaluations. A loss of 0, as the
    content loss at a start from the content, has no place there and is left out.

    Args:
        history: {column of history.csv: its values}.
        path: the SVG file; written atomically.
    """
    layers = {
        column.removesuffix(_WEIGHTED).replace("_", " ", 1): values
        for column, values in history.items()
        if column.endswith(_WEIGHTED)
    }
    terms = {term: history[term] for term in ("total", *term_names())}
    panels = {"terms": terms, "layers, weighted": layers}
    panels = {title: curves for title, curves in panels.items() if curves}
    with _figure(path, (11, 3.6), fitted=False) as figure:
        figure.subplots_adjust(left=0.07, right=0.995, bottom=0.13, top=0.92, wspace=0.18)
        for position, (title, curves) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(1, len(panels), position)
            for name, values in curves.items():
                drawn = [value if value > 0 else float("nan") for value in values]
                if any(values):
                    axes.plot(history["evaluation"], drawn, label=name, linewidth=1.3)
            axes.set(yscale="log", title=title, xlabel="evaluations", ylabel="loss")
            low, high = axes.get_ylim()
            low = max(low, high * _DECADES)
            axes.set_ylim(bottom=low)
            # Few ticks, and their labels no formulas: these take most of the time of a drawing.
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
            axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")


def depth_curves(
    layers: Sequence[str], errors: Sequence[float], likenesses: Sequence[float], path: Path
) -> None:
    """Writes pixel RMSE and SSIM of reconstructions against the layers they were made from."""
    with _figure(path, (6, 2.6)) as figure:
        for position, (title, values) in enumerate(
            (("pixel RMSE", errors), ("SSIM", likenesses)), 1
        ):
            axes = figure.add_subplot(1, 2, position)
            axes.plot(range(len(layers)), values, marker="o")
            known = [value for value in values if math.isfinite(value)]
            axes.set(
                title=title,
                ylim=(1.1 * min([0, *known]), 1.1 * max([0.01, *known])),
                xticks=range(len(layers)),
            )
            axes.set_xticklabels(layers, rotation=30)


def trade_off_curve(
    ratios: Sequence[float], contents: Sequence[float], styles: Sequence[float], path: Path
) -> None:
    """Writes style loss against content loss, a point for each ratio α/β."""
    with _figure(path, (4.2, 3)) as figure:
        axes = figure.add_subplot()
        axes.plot(contents, styles, marker="o")
        for ratio, content, style in zip(ratios, contents, styles, strict=True):
            axes.annotate(f"{ratio:g}", (content, style), xytext=(5, 5), textcoords="offset points")
        axes.set(xscale="log", yscale="log", xlabel="content loss", ylabel="style loss")
        axes.margins(0.12)


def distance_map(titles: Sequence[str], distances: Sequence[Sequence[float]], path: Path) -> None:
    """Writes a symmetric matrix of distances as a map, darker where they are larger."""
    with _figure(path, (4.2, 3.4)) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(distances, cmap="Greys", vmin=0)
        axes.grid(visible=False)
        axes.set_xticks(range(len(titles)), titles, rotation=40, ha="right")
        axes.set_yticks(range(len(titles)), titles)
        figure.colorbar(image, label="RMSE")


@contextmanager
def _figure(path: Path, size: tuple[float, float], *, fitted: bool = True) -> Iterator[Figure]:
    """Yields a figure of ``size`` inches and writes it when the block is done.

    To find out how much room the words need takes as long as all else: where it is not ``fitted``
    whoever draws says it.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained" if fitted else None)
        yield figure
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
        write_text(path, _PATH.sub(_rounded, written.getvalue()))


def _rounded(path: re.Match[str]) -> str:
    return _FINER.sub(r"\1", path[0])
