"""Pictures and curves as the report's pages show them, copied into its folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pipeline import paths
from pipeline.experiments.results import Cell
from pipeline.files import replacing
from pipeline.imaging.picture_files import read_picture
from pipeline.report.plots import loss_curves

MEDIA = paths.REPORTS / "media"
JPEG_EDGE, JPEG_QUALITY = 512, 75
"""Long edge in pixels of everything but results, which are shown as they are."""


class Picture(NamedTuple):
    """A picture of the report: its path relative to ``reports``, and its size in pixels."""

    path: str
    width: int
    height: int


@dataclass(frozen=True)
class Shown:
    """A cell with the files that show it.

    Attributes:
        cell: the experiment.
        inputs: {content or style: its picture}, of the roles it has.
        image: the result, None without one.
        intermediates: {evaluation: picture}.
        curves: path of the loss curves, relative to ``reports``; empty without results.
    """

    cell: Cell
    inputs: dict[str, Picture]
    image: Picture | None
    intermediates: dict[int, Picture]
    curves: str


def show(cell: Cell) -> Shown:
    """Writes the files of a cell into ``MEDIA`` and returns it with them."""
    inputs = {}
    for role in cell.roles:
        source = paths.picture(cell.settings[role])
        if source.is_file():
            inputs[role] = _jpeg(source, MEDIA / "pictures" / f"{cell.settings[role]}.jpg")
    if cell.results is None:
        return Shown(cell, inputs, None, {}, "")
    folder = MEDIA / "experiments" / cell.name
    image, curves = folder / "image.png", folder / "losses.svg"
    with replacing(image) as temporary:
        shutil.copyfile(cell.results.image, temporary)
    loss_curves(cell.results.history, curves)
    intermediates = {
        evaluation: _jpeg(file, folder / f"{file.stem}.jpg")
        for evaluation, file in cell.results.intermediates.items()
    }
    return Shown(cell, inputs, _picture(image), intermediates, relative(curves))


def relative(path: Path) -> str:
    """Returns a path relative to ``reports``, as a page's address."""
    return path.relative_to(paths.REPORTS).as_posix()


def _picture(path: Path) -> Picture:
    with Image.open(path) as picture:
        return Picture(relative(path), *picture.size)


def _jpeg(source: Path, target: Path) -> Picture:
    if not target.is_file():
        picture = read_picture(source)
        picture.thumbnail((JPEG_EDGE, JPEG_EDGE), Image.Resampling.LANCZOS)
        with replacing(target) as temporary:
            picture.save(temporary, format="JPEG", quality=JPEG_QUALITY)
    return _picture(target)
