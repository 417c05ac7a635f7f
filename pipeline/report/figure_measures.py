"""Tables and plots that measure a figure, for what the paper claims of it.

Pictures are compared as saved, 8-bit sRGB in units of the full range: an RMSE of 1 is black against
white. Each measurement has a plot, an SVG file that matplotlib draws.
"""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from pipeline import paths
from pipeline.experiments.results import COMPARED, ExperimentRecord, setting_text
from pipeline.files import write_text
from pipeline.imaging.picture_files import read_picture

Pixels = npt.NDArray[np.float64]
Records = Sequence[ExperimentRecord]

PLOTTED = "Style distance against content distance; a line joins those that none surpasses in both"
"""The description of the plot of ``plot_distances``."""
LABELLED = 10
"""The most points of a plot that have a label each."""
STYLE: Any = {
    "svg.hashsalt": "style-transfer",  # the identifiers in the file are random without it
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


class Measurement(NamedTuple):
    """A table of measured values as text, a note on them, and a description of their plot.

    The first value of a row is its title.
    """

    columns: list[str]
    rows: list[list[str]]
    note: str
    plot: str


def measure_reconstructions(records: Records, plot: Path) -> Measurement:
    """Measures the distance of reconstructions from their input picture: loss, RMSE and structure.

    The experiments have one loss, of content or of style.
    """
    (role,) = set(records[0].images) - {"init"}
    rows, layers, errors, similarities = [], [], [], []
    for record in records:
        names, results = record.settings[f"{role}_layers"], record.finished
        start = results.losses.get(f"start_{role}", results.history[role][0])
        loss = f"{100 * results.losses[f'saved_{role}'] / start:.3g} %" if start else "–"
        errors.append(_error(record, paths.picture(record.images[role])))
        similarities.append(results.metrics["structure"])
        rows.append([setting_text(names), loss, f"{errors[-1]:.3f}", f"{similarities[-1]:.3f}"])
        layers.append(list(names)[-1])
    with _figure(plot, (6, 2.6)) as figure:
        plots = {"pixel RMSE": errors, "structure": similarities}
        for (title, values), axes in zip(plots.items(), figure.subplots(1, 2), strict=True):
            axes.plot(range(len(layers)), values, marker="o")
            axes.set(title=title, ylim=(1.1 * min(0, *values), 1.1 * max(0.01, *values)))
            axes.set_xticks(range(len(layers)), layers, rotation=30)
    return Measurement(
        [f"{role} layers", f"{role} loss, relative to the start", "pixel RMSE", "structure"],
        rows,
        "The loss is that of the saved picture in percent of the loss at the start. The RMSE "
        f"compares it with the {role} image. Structure is its SSIM with the content image.",
        "Pixel RMSE and structure against the deepest layer",
    )


def measure_trade_off(records: Records, plot: Path) -> Measurement:
    """Measures content and style loss, both before their weights, against their ratio α/β."""
    ratios, contents, styles, rows = [], [], [], []
    for record in records:
        alpha, beta = record.settings["content_weight"], record.settings["style_weight"]
        ratios.append(alpha / beta)
        contents.append(record.finished.losses["saved_content"] / alpha)
        styles.append(record.finished.losses["saved_style"] / beta)
        distances = [record.finished.metrics[f"{role}_distance"] for role in ("content", "style")]
        values = contents[-1], styles[-1], *distances
        rows.append([f"{ratios[-1]:g}", *(f"{value:.4g}" for value in values)])
    with _figure(plot, (4.2, 3)) as figure:
        axes = figure.add_subplot()
        axes.plot(contents, styles, marker="o")
        for ratio, *point in zip(ratios, contents, styles, strict=True):
            axes.annotate(f"{ratio:g}", tuple(point), xytext=(5, 5), textcoords="offset points")
        axes.set(xscale="log", yscale="log", xlabel="content loss", ylabel="style loss")
        axes.margins(0.12)
    return Measurement(
        ["α/β", "content loss", "style loss", "content distance", "style distance"],
        rows,
        "The losses are those of the saved pictures, without the weights α and β. The distances "
        "are by one network for all experiments.",
        "Style loss against content loss, one point for each ratio",
    )


def measure_starts(records: Records, plot: Path) -> Measurement:
    """Measures the influence of the start: the RMSE between every two results."""
    pixels = [_pixels(read_picture(record.finished.image)) for record in records]
    titles = [_start(record, records) for record in records]
    distances = [[_rmse(one, other) for other in pixels] for one in pixels]
    with _figure(plot, (4.2, 3.4)) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(distances, cmap="Greys", vmin=0)
        axes.grid(visible=False)
        axes.set_xticks(range(len(titles)), titles, rotation=40, ha="right")
        axes.set_yticks(range(len(titles)), titles)
        figure.colorbar(image, label="RMSE")
    noises, repeats = [], []
    for (i, one), (j, other) in combinations(enumerate(records), 2):
        if one.settings == other.settings:
            repeats.append(distances[i][j])
        elif one.settings["init"] == other.settings["init"] == "noise":
            noises.append(distances[i][j])
    note = "The values are the RMSE between two results."
    if noises:
        note += f" Two noises: {min(noises):.4f} to {max(noises):.4f}."
    if repeats:
        note += f" Two runs with equal settings: at most {max(repeats):.4g}."
    pairs = zip(titles, distances, strict=True)
    rows = [[title, *(f"{distance:.4f}" for distance in row)] for title, row in pairs]
    plotted = "RMSE between every two results, as shades of grey"
    return Measurement(["", *titles], rows, note, plotted)


def measure_distances(records: Records, plot: Path) -> Measurement:
    """Tabulates the measures of each experiment."""
    plot_distances(records, plot)
    names = [name for name in records[0].finished.metrics if name not in COMPARED]
    rows = [
        [record.name, *(f"{record.finished.metrics[name]:.4g}" for name in names)]
        for record in records
    ]
    return Measurement(
        ["experiment", *(name.replace("_", " ") for name in names)],
        rows,
        "Distances are 0 for the same content or style, structure is 1.",
        PLOTTED,
    )


MEASURES: dict[str, Callable[[Records, Path], Measurement]] = {
    "reconstruction": measure_reconstructions,
    "trade-off": measure_trade_off,
    "starts": measure_starts,
    "distances": measure_distances,
}
"""The functions that measure finished experiments, by the values of ``figures.NAME.measure``."""


@contextmanager
def _figure(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """Yields a figure of ``size`` inches, then writes it; equal figures give equal bytes."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        write_text(path, svg.getvalue())


def _start(record: ExperimentRecord, records: Records) -> str:
    init = str(record.settings["init"])
    title = f"{init} {record.settings['seed']}" if init == "noise" else init
    equal = [other.name for other in records if other.settings == record.settings]
    return title if record.name == equal[0] else f"{title}, repeated"


def plot_distances(records: Records, plot: Path) -> None:
    """Plots style against content distance, and a line through the pictures that none surpasses."""
    points = [
        (record.finished.metrics["content_distance"], record.finished.metrics["style_distance"])
        for record in records
    ]
    best = unsurpassed(points)
    with _figure(plot, (4.6, 3.4)) as figure:
        axes = figure.add_subplot()
        axes.step(*zip(*best, strict=True), where="post", color="0.7", zorder=1)
        axes.plot(*zip(*points, strict=True), "o", markersize=4)
        prefix = len(os.path.commonprefix([record.name for record in records]))  # noqa: RUF071 - of names
        for record, point in zip(records, points, strict=True):
            if len(records) <= LABELLED:
                label = record.name[prefix:] or record.name
                axes.annotate(label, point, xytext=(4, 4), textcoords="offset points", fontsize=7)
        axes.set(xlabel="content distance", ylabel="style distance")
        axes.margins(0.12)


def unsurpassed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the points that no other surpasses, by the first coordinate: the Pareto front.

    One surpasses another if none of its coordinates is larger, and one is smaller.
    """

    def surpasses(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one != other and one[0] <= other[0] and one[1] <= other[1]

    return sorted(p for p in set(points) if not any(surpasses(other, p) for other in points))


def _error(record: ExperimentRecord, file: Path) -> float:
    """Returns the RMSE between a result and a picture, resized to the size of the result.

    It is resized as by ``imaging.tensors.resize`` up to rounding. Without antialiasing the bicubic
    kernels differ too, by an RMSE of 0.03 on noise.
    """
    result, target = read_picture(record.finished.image), read_picture(file)
    resampling = record.settings.get("resampling", "bicubic")
    if resampling == "pillow-2.6":  # which Pillow has no more
        # Here: to import torch takes longer than to write the report.
        from pipeline.imaging.tensors import resize, to_picture, to_tensor

        size = result.height, result.width
        target = to_picture(resize(to_tensor(target), size, resampling, antialias=False))
    elif record.settings.get("antialias", True):
        target = target.resize(result.size, Image.Resampling[resampling.upper()])
    else:
        x, y = (old / new for old, new in zip(target.size, result.size, strict=True))
        affine, method = Image.Transform.AFFINE, Image.Resampling[resampling.upper()]
        target = target.transform(result.size, affine, (x, 0, 0, 0, y, 0), method)
    return _rmse(_pixels(result), _pixels(target))


def _pixels(picture: Image.Image) -> Pixels:
    """Returns a picture as (H, W, 3) in [0, 1]."""
    return np.asarray(picture, dtype=np.float64) / 255


def _rmse(one: Pixels, other: Pixels) -> float:
    return float(np.sqrt(np.mean((one - other) ** 2)))
