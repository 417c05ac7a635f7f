"""What the paper claims of a figure, measured on its pictures.

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
from pipeline.experiments.results import Cell, as_text
from pipeline.imaging.picture_files import read_picture
from pipeline.report.plots import depth_curves, distance_map, trade_off_curve

Pixels = npt.NDArray[np.float64]

WINDOW = 11
"""Edge in pixels of SSIM's window, which a picture must hold."""


@dataclass(frozen=True)
class Measurement:
    """A table for people, and perhaps a plot.

    Attributes:
        columns, rows: the table, every cell as text; a row's first cell is its title.
        note: what to read in it.
        plot: what the plot shows, empty without one.
    """

    columns: list[str]
    rows: list[list[str]]
    note: str
    plot: str = ""


def reconstruction(cells: Sequence[Cell], plot: Path) -> Measurement:
    """Measures how near a reconstruction comes to its picture: by its own loss, and in pixels.

    SSIM is that of Wang et al. 2004 (Gaussian window of 1.5 pixels), the mean over channels; a
    picture smaller than the window has none.
    """
    role = cells[0].roles[0]
    layers = [as_text(cell.settings[f"{role}_layers"]) for cell in cells]
    shares, errors, likenesses = [], [], []
    for cell in cells:
        results = cell.finished
        start = results.metrics.get(f"start_{role}", results.history[role][0])
        shares.append(results.metrics[f"saved_{role}"] / start)
        picture = read_picture(results.image)
        found = _pixels(picture)
        target = read_picture(paths.picture(cell.settings[role]))
        wanted = _pixels(_resized(target, picture.size, cell.settings))
        errors.append(_rmse(found, wanted))
        likenesses.append(_ssim(found, wanted))
    depth_curves([layer.split(", ")[-1] for layer in layers], errors, likenesses, plot)
    return Measurement(
        columns=[f"{role} layers", f"{role} loss, of the start's", "pixel RMSE", "SSIM"],
        rows=[
            [layer, f"{100 * share:.3g} %", f"{error:.3f}", _shown(likeness)]
            for layer, share, error, likeness in zip(
                layers, shares, errors, likenesses, strict=True
            )
        ],
        note=f"Loss of the picture as saved, in percent of the start's; RMSE and SSIM against the "
        f"{role} image.",
        plot="Pixel RMSE and SSIM against the deepest layer",
    )


def trade_off(cells: Sequence[Cell], plot: Path) -> Measurement:
    """Measures what a ratio of the weights buys: both losses before their weights."""
    ratios = [cell.settings["content_weight"] / cell.settings["style_weight"] for cell in cells]
    contents, styles = (
        [cell.finished.metrics[f"saved_{role}"] / cell.settings[f"{role}_weight"] for cell in cells]
        for role in ("content", "style")
    )
    trade_off_curve(ratios, contents, styles, plot)
    return Measurement(
        columns=["α/β", "content loss", "style loss"],
        rows=[
            [f"{ratio:g}", f"{content:.4g}", f"{style:.4g}"]
            for ratio, content, style in zip(ratios, contents, styles, strict=True)
        ],
        note="Losses of the pictures as saved, before α and β.",
        plot="Style loss against content loss, one point for each ratio",
    )


def starts(cells: Sequence[Cell], plot: Path) -> Measurement:
    """Measures how much the start decides: the RMSE between every two results."""
    pixels = [_pixels(read_picture(cell.finished.image)) for cell in cells]
    titles = [_start(cell, cells) for cell in cells]
    distances = [[_rmse(one, other) for other in pixels] for one in pixels]
    distance_map(titles, distances, plot)
    noises, repeats = [], []
    for (i, one), (j, other) in combinations(enumerate(cells), 2):
        if one.settings == other.settings:
            repeats.append(distances[i][j])
        elif one.settings["init"] == other.settings["init"] == "noise":
            noises.append(distances[i][j])
    notes = ["RMSE between two results."]
    if noises:
        notes.append(f"Between two noises {min(noises):.4f} to {max(noises):.4f}.")
    if repeats:
        notes.append(f"Between two runs with the same settings {max(repeats):.4g}.")
    rows = [
        [title, *(f"{distance:.4f}" for distance in row)]
        for title, row in zip(titles, distances, strict=True)
    ]
    return Measurement(["", *titles], rows, " ".join(notes), "The same distances as a map")


MEASURES: dict[str, Callable[[Sequence[Cell], Path], Measurement]] = {
    "reconstruction": reconstruction,
    "trade-off": trade_off,
    "starts": starts,
}
"""What ``figures.NAME.measure`` may be → what measures it, given finished cells."""


def _start(cell: Cell, cells: Sequence[Cell]) -> str:
    init = str(cell.settings["init"])
    title = f"{init} {cell.settings['seed']}" if init == "noise" else init
    same = [other.name for other in cells if other.settings == cell.settings]
    return title if cell.name == same[0] else f"{title}, again"


def _pixels(picture: Image.Image) -> Pixels:
    """Returns a picture as (H, W, 3) in [0, 1]."""
    return np.asarray(picture, dtype=np.float64) / 255


def _resized(
    picture: Image.Image, size: tuple[int, int], settings: Mapping[str, Any]
) -> Image.Image:
    """Returns a picture at a size (W, H), as ``images.resize`` does it but for rounding.

    Without antialiasing the bicubic kernels differ too: 0.03 of RMSE on noise.
    """
    method = Image.Resampling[settings.get("resampling", "bicubic").upper()]
    if settings.get("antialias", True):
        return picture.resize(size, method)
    width, height = (old / new for old, new in zip(picture.size, size, strict=True))
    return picture.transform(size, Image.Transform.AFFINE, (width, 0, 0, 0, height, 0), method)


def _rmse(one: Pixels, other: Pixels) -> float:
    return math.sqrt(float(np.square(one - other).mean()))


def _shown(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _ssim(one: Pixels, other: Pixels) -> float:
    if min(one.shape[:2]) < WINDOW:
        return math.nan
    return float(
        structural_similarity(
            one,
            other,
            data_range=1.0,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )
