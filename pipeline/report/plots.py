"""Plots of the measurements, drawn by matplotlib as SVG; equal data gives equal bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from pipeline.files import write_text

_STYLE: Any = {
    "svg.hashsalt": "style-transfer",  # the identifiers in the file are random without it
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def plot_reconstructions(
    layers: Sequence[str], errors: Sequence[float], similarities: Sequence[float], path: Path
) -> None:
    """Writes pixel RMSE and SSIM of reconstructions against the layers they were made from."""
    with _figure(path, (6, 2.6)) as figure:
        plots = {"pixel RMSE": errors, "SSIM": similarities}
        for (title, values), axes in zip(plots.items(), figure.subplots(1, 2), strict=True):
            axes.plot(range(len(layers)), values, marker="o")
            known = [value for value in values if math.isfinite(value)]
            axes.set(title=title, ylim=(1.1 * min([0, *known]), 1.1 * max([0.01, *known])))
            axes.set_xticks(range(len(layers)), layers, rotation=30)


def plot_trade_off(
    ratios: Sequence[float], contents: Sequence[float], styles: Sequence[float], path: Path
) -> None:
    """Writes style loss against content loss, one point for each ratio α/β."""
    with _figure(path, (4.2, 3)) as figure:
        axes = figure.add_subplot()
        axes.plot(contents, styles, marker="o")
        for ratio, content, style in zip(ratios, contents, styles, strict=True):
            axes.annotate(f"{ratio:g}", (content, style), xytext=(5, 5), textcoords="offset points")
        axes.set(xscale="log", yscale="log", xlabel="content loss", ylabel="style loss")
        axes.margins(0.12)


def plot_distances(titles: Sequence[str], distances: Sequence[Sequence[float]], path: Path) -> None:
    """Writes a symmetric matrix of distances as a grid of grey squares, darker for larger ones."""
    with _figure(path, (4.2, 3.4)) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(distances, cmap="Greys", vmin=0)
        axes.grid(visible=False)
        axes.set_xticks(range(len(titles)), titles, rotation=40, ha="right")
        axes.set_yticks(range(len(titles)), titles)
        figure.colorbar(image, label="RMSE")


@contextmanager
def _figure(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """Yields a figure of ``size`` inches, and writes it when the block is done."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        write_text(path, svg.getvalue())
