"""Measurements of what the paper claims of a figure, on the pictures of that figure.

Pictures are compared as saved, 8-bit sRGB in units of the full range: an RMSE of 1 is black against
white.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from skimage.metrics import structural_similarity

from pipeline import paths
from pipeline.experiments.results import ExperimentRecord, setting_text
from pipeline.imaging.picture_files import read_picture
from pipeline.report.plots import plot_distances, plot_reconstructions, plot_trade_off

Pixels = npt.NDArray[np.float64]
Records = Sequence[ExperimentRecord]

SSIM_WINDOW = 11
"""Edge in pixels of the window of SSIM. Smaller pictures have no SSIM."""


@dataclass(frozen=True)
class Measurement:
    """A table of measured values.

    Attributes:
        columns, rows: the table, all as text; the first value of a row is its title.
        note: explains the values.
        plot: describes the plot.
    """

    columns: list[str]
    rows: list[list[str]]
    note: str
    plot: str


def measure_reconstructions(records: Records, plot: Path) -> Measurement:
    """Measures the distance of reconstructions from their input picture: loss, RMSE and SSIM.

    SSIM is that of Wang et al. 2004 (Gaussian window with a standard deviation of 1.5 pixels), the
    mean over the channels.

    Args:
        records: finished experiments with one loss, of content or of style.
        plot: the SVG file to write.
    """
    (role,) = records[0].images
    rows, layers, errors, similarities = [], [], [], []
    for record in records:
        names, results = record.settings[f"{role}_layers"], record.finished
        start = results.metrics.get(f"start_{role}", results.history[role][0])
        picture = read_picture(results.image)
        target = read_picture(paths.picture(record.images[role]))
        pixels = _pixels(picture), _pixels(_resized(target, picture.size, record.settings))
        error, similarity = _rmse(*pixels), _ssim(*pixels)
        loss = f"{100 * results.metrics[f'saved_{role}'] / start:.3g} %"
        shown = "–" if math.isnan(similarity) else f"{similarity:.3f}"
        rows.append([setting_text(names), loss, f"{error:.3f}", shown])
        layers.append(list(names)[-1])
        errors.append(error)
        similarities.append(similarity)
    plot_reconstructions(layers, errors, similarities, plot)
    return Measurement(
        columns=[f"{role} layers", f"{role} loss, relative to the start", "pixel RMSE", "SSIM"],
        rows=rows,
        note=f"The loss is that of the saved picture in percent of the loss at the start. RMSE and "
        f"SSIM compare it with the {role} image.",
        plot="Pixel RMSE and SSIM against the deepest layer",
    )


def measure_trade_off(records: Records, plot: Path) -> Measurement:
    """Measures content and style loss, both before their weights, against their ratio α/β."""
    ratios, contents, styles = [], [], []
    for record in records:
        settings, metrics = record.settings, record.finished.metrics
        ratios.append(settings["content_weight"] / settings["style_weight"])
        contents.append(metrics["saved_content"] / settings["content_weight"])
        styles.append(metrics["saved_style"] / settings["style_weight"])
    plot_trade_off(ratios, contents, styles, plot)
    values = zip(ratios, contents, styles, strict=True)
    return Measurement(
        columns=["α/β", "content loss", "style loss"],
        rows=[[f"{ratio:g}", f"{content:.4g}", f"{style:.4g}"] for ratio, content, style in values],
        note="The losses are those of the saved pictures, without the weights α and β.",
        plot="Style loss against content loss, one point for each ratio",
    )


def measure_starts(records: Records, plot: Path) -> Measurement:
    """Measures the influence of the start: the RMSE between every two results."""
    pixels = [_pixels(read_picture(record.finished.image)) for record in records]
    titles = [_start(record, records) for record in records]
    distances = [[_rmse(one, other) for other in pixels] for one in pixels]
    plot_distances(titles, distances, plot)
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
    rows = [
        [title, *(f"{distance:.4f}" for distance in row)]
        for title, row in zip(titles, distances, strict=True)
    ]
    return Measurement(
        ["", *titles], rows, note, "RMSE between every two results, as shades of grey"
    )


MEASURES: dict[str, Callable[[Records, Path], Measurement]] = {
    "reconstruction": measure_reconstructions,
    "trade-off": measure_trade_off,
    "starts": measure_starts,
}
"""{a value of ``figures.NAME.measure``: the function that measures finished experiments}."""


def _start(record: ExperimentRecord, records: Records) -> str:
    init = str(record.settings["init"])
    title = f"{init} {record.settings['seed']}" if init == "noise" else init
    equal = [other.name for other in records if other.settings == record.settings]
    return title if record.name == equal[0] else f"{title}, repeated"


def _pixels(picture: Image.Image) -> Pixels:
    """Returns a picture as (H, W, 3) in [0, 1]."""
    return np.asarray(picture, dtype=np.float64) / 255


def _resized(
    picture: Image.Image, size: tuple[int, int], settings: Mapping[str, Any]
) -> Image.Image:
    """Returns a picture at a size (W, H), resized as by ``imaging.tensors.resize`` up to rounding.

    Without antialiasing the bicubic kernels differ too, by an RMSE of 0.03 on noise.
    """
    method = Image.Resampling[settings.get("resampling", "bicubic").upper()]
    if settings.get("antialias", True):
        return picture.resize(size, method)
    width, height = (old / new for old, new in zip(picture.size, size, strict=True))
    return picture.transform(size, Image.Transform.AFFINE, (width, 0, 0, 0, height, 0), method)


def _rmse(one: Pixels, other: Pixels) -> float:
    return math.sqrt(float(np.square(one - other).mean()))


def _ssim(one: Pixels, other: Pixels) -> float:
    if min(one.shape[:2]) < SSIM_WINDOW:
        return math.nan
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(one, other, data_range=1.0, channel_axis=2, **gaussian))
