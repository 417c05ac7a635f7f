"""Pictures of the report, copied or reduced into its folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pipeline import paths
from pipeline.experiments.results import ExperimentRecord
from pipeline.files import replacing
from pipeline.imaging.picture_files import read_picture

JPEG_EDGE, JPEG_QUALITY = 512, 75
"""Longest edge in pixels of all pictures but results, which are shown unchanged."""


class Picture(NamedTuple):
    """A picture of the report: its path relative to the report's folder, and its size in pixels."""

    path: str
    width: int
    height: int


@dataclass(frozen=True)
class ReportEntry:
    """An experiment with the files of the report that show it; without results only its inputs.

    Attributes:
        inputs: {role, such as ``content``: the input picture}.
        intermediates: {evaluation: the image at it}.
        curves: path of the loss curves, relative to the report's folder.
    """

    record: ExperimentRecord
    inputs: dict[str, Picture]
    image: Picture | None = None
    intermediates: Mapping[int, Picture] = field(default_factory=dict)
    curves: str = ""


def add_pictures(record: ExperimentRecord, folder: Path) -> ReportEntry:
    """Writes the pictures of an experiment into the report's folder and returns its entry."""
    inputs = {
        role: _add_jpeg(paths.picture(name), f"media/pictures/{name}.jpg", folder)
        for role, name in record.images.items()
        if paths.picture(name).is_file()
    }
    if record.results is None:
        return ReportEntry(record, inputs)
    media = f"media/experiments/{record.name}"
    with replacing(folder / media / "image.png") as temporary:
        shutil.copyfile(record.results.image, temporary)
    return ReportEntry(
        record,
        inputs,
        image=_picture(f"{media}/image.png", folder),
        intermediates={
            evaluation: _add_jpeg(file, f"{media}/{file.stem}.jpg", folder)
            for evaluation, file in record.results.intermediates.items()
        },
        curves=f"{media}/losses.svg",
    )


def _add_jpeg(source: Path, path: str, folder: Path) -> Picture:
    if not (folder / path).is_file():
        picture = read_picture(source)
        picture.thumbnail((JPEG_EDGE, JPEG_EDGE), Image.Resampling.LANCZOS)
        with replacing(folder / path) as temporary:
            picture.save(temporary, format="JPEG", quality=JPEG_QUALITY)
    return _picture(path, folder)


def _picture(path: str, folder: Path) -> Picture:
    with Image.open(folder / path) as picture:
        return Picture(path, *picture.size)
