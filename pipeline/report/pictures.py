"""The pictures of the report: copies and reductions of inputs, results and intermediates."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pipeline import paths
from pipeline.errors import UserError
from pipeline.experiments.results import ExperimentRecord
from pipeline.files import replacing
from pipeline.imaging.picture_files import read_picture

JPEG_EDGE, JPEG_QUALITY = 512, 75
"""Longest edge in pixels of all pictures but results and time-lapses."""
LARGE = 2048
"""Longest edge of a result that the page of its experiment shows unchanged. A larger one is reduced
to it there, and shown in parts."""
PART_EDGE, PART_QUALITY = 512, 90


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
        image: the result, unchanged if it is not ``LARGE``.
        thumbnail: the result where many are shown.
        parts: of a large result all of its pixels, in rows of pictures.
        intermediates: {evaluation: the image at it}.
        curves: path of the loss curves, relative to the report's folder.
        timelapse: the animation of the intermediates, unchanged.
    """

    record: ExperimentRecord
    inputs: dict[str, Picture]
    image: Picture | None = None
    thumbnail: Picture | None = None
    parts: Sequence[Sequence[Picture]] = ()
    intermediates: Mapping[int, Picture] = field(default_factory=dict)
    curves: str = ""
    timelapse: Picture | None = None


def add_pictures(record: ExperimentRecord, folder: Path) -> ReportEntry:
    """Writes the pictures of an experiment into the report's folder and returns its entry.

    Raises:
        UserError: an input picture of the results is missing, or a picture cannot be read.
    """
    files = {role: paths.picture(name) for role, name in record.images.items()}
    missing = [file for file in files.values() if not file.is_file()]
    if missing and record.results:
        raise UserError(
            f"{missing[0]}, an input picture of {record.name}, is missing. `dvc repro fetch` "
            "fetches it, and `dvc pull fetch` brings it from DVC's remote"
        )
    inputs = {
        role: _add_jpeg(file, f"media/pictures/{file.stem}.jpg", folder)
        for role, file in files.items()
        if file not in missing
    }
    results, media = record.results, f"media/experiments/{record.name}"
    if results is None:
        return ReportEntry(record, inputs)
    with Image.open(results.image) as picture:
        longest = max(picture.size)
    parts: Sequence[Sequence[Picture]] = ()
    if longest > LARGE:
        image = _add_jpeg(results.image, f"{media}/reduced.jpg", folder, LARGE)
        parts = _add_parts(results.image, f"{media}/parts", folder)
    else:
        image = _add_copy(results.image, f"{media}/image.png", folder)
    thumbnail = image
    if longest > JPEG_EDGE:
        thumbnail = _add_jpeg(results.image, f"{media}/image.jpg", folder)
    intermediates = {
        evaluation: _add_jpeg(file, f"{media}/{file.stem}.jpg", folder)
        for evaluation, file in results.intermediates.items()
    }
    timelapse = None
    if results.timelapse:
        timelapse = _add_copy(results.timelapse, f"{media}/timelapse.webp", folder)
    curves = f"{media}/losses.svg"
    return ReportEntry(record, inputs, image, thumbnail, parts, intermediates, curves, timelapse)


def _add_jpeg(source: Path, path: str, folder: Path, edge: int = JPEG_EDGE) -> Picture:
    if not (folder / path).is_file():
        picture = read_picture(source)
        picture.thumbnail((edge, edge), Image.Resampling.LANCZOS)
        _save_jpeg(picture, folder / path, JPEG_QUALITY)
    return _picture(path, folder)


def _add_parts(source: Path, folder_path: str, folder: Path) -> list[list[Picture]]:
    """Writes a large picture as rows of parts, of which a browser loads those that are seen."""
    whole = read_picture(source)
    rows = []
    for top in range(0, whole.height, PART_EDGE):
        row = []
        for left in range(0, whole.width, PART_EDGE):
            right, bottom = left + PART_EDGE, top + PART_EDGE
            box = left, top, min(right, whole.width), min(bottom, whole.height)
            path = f"{folder_path}/{top:05d}-{left:05d}.jpg"
            _save_jpeg(whole.crop(box), folder / path, PART_QUALITY)
            row.append(_picture(path, folder))
        rows.append(row)
    return rows


def _save_jpeg(picture: Image.Image, file: Path, quality: int) -> None:
    with replacing(file) as temporary:
        picture.save(temporary, format="JPEG", quality=quality)


def _add_copy(source: Path, path: str, folder: Path) -> Picture:
    with replacing(folder / path) as temporary:
        shutil.copyfile(source, temporary)
    return _picture(path, folder)


def _picture(path: str, folder: Path) -> Picture:
    with Image.open(folder / path) as picture:
        return Picture(path, *picture.size)
