"""Pages of the report: renders the templates, and writes the pictures and plots they show."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from PIL import Image

from pipeline import paths
from pipeline.config.schema import Figure, ReportSettings
from pipeline.errors import UserError
from pipeline.experiments.results import ExperimentRecord, differing_settings, setting_text
from pipeline.files import replacing, write_text
from pipeline.imaging.picture_files import read_picture
from pipeline.report.contact_sheets import write_contact_sheet
from pipeline.report.loss_curves import HEIGHT, WIDTH, loss_plots
from pipeline.report.measures import MEASURES

OTHERS, COLUMNS = "_others", 5
"""The figure of all experiments that are in no other, and its columns. No name begins with _."""
JPEG_EDGE, JPEG_QUALITY = 512, 75
"""Longest edge in pixels of all pictures but results and time-lapses, which are shown unchanged on
the page of their experiment."""

_ADDRESS = re.compile(
    r"(?<=:)(?=//)|(?<=www)(?=\.)|(?<=@)(?=[\w-]+\.\w)|(?<=(?<!\w)@)", re.IGNORECASE
)
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKUP = re.compile(r"[\\`*_\[\]#!|~$&<>]|\.(?=[^\W\d])")


def markdown(text: str) -> str:
    """Returns Markdown that shows a text as it is, on one line, in a heading or a table.

    A backslash does not keep all viewers from making links of addresses. A word joiner does, which
    is invisible.
    """
    divided = _ADDRESS.sub("\u2060", " ".join(text.split()))
    return _MARKUP.sub(lambda match: _ENTITIES.get(match[0], f"\\{match[0]}"), divided)


TEMPLATES = Environment(
    loader=PackageLoader("pipeline.report"),
    autoescape=select_autoescape(["html", "svg"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {
    "setting_text": setting_text,
    "markdown": markdown,
}


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
        image: the result, unchanged.
        thumbnail: the result where many are shown; a reduced one if it is large.
        intermediates: {evaluation: the image at it}.
        curves: path of the loss curves, relative to the report's folder.
        timelapse: the animation of the intermediates, unchanged.
    """

    record: ExperimentRecord
    inputs: dict[str, Picture]
    image: Picture | None = None
    thumbnail: Picture | None = None
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
    image = thumbnail = _add_copy(results.image, f"{media}/image.png", folder)
    if max(image.width, image.height) > JPEG_EDGE:
        thumbnail = _add_jpeg(results.image, f"{media}/image.jpg", folder)
    intermediates = {
        evaluation: _add_jpeg(file, f"{media}/{file.stem}.jpg", folder)
        for evaluation, file in results.intermediates.items()
    }
    timelapse = None
    if results.timelapse:
        timelapse = _add_copy(results.timelapse, f"{media}/timelapse.webp", folder)
    curves = f"{media}/losses.svg"
    return ReportEntry(record, inputs, image, thumbnail, intermediates, curves, timelapse)


def write_pages(entries: Mapping[str, ReportEntry], plan: ReportSettings, folder: Path) -> None:
    """Writes all pages, plots and contact sheets of the report into a folder."""
    layouts = dict(plan.figures)
    if others := [name for name in entries if plan.figure_of(name) is None]:
        rows = [others[start : start + COLUMNS] for start in range(0, len(others), COLUMNS)]
        layouts[OTHERS] = Figure(title="Other experiments", rows=rows)
    images = {image for entry in entries.values() for image in entry.record.images.values()}
    values: dict[str, Any] = {
        "figures": [_figure(name, layout, entries, folder) for name, layout in layouts.items()],
        "entries": entries,
        "images": {name: plan.images[name] for name in sorted(images)},
        "table": _table(entries),
    }
    for page in ("index.html", "compare.html", "summary.md"):
        write_text(folder / page, TEMPLATES.get_template(page).render(root="", **values))
    experiment, losses = map(TEMPLATES.get_template, ("experiment.html", "losses.svg"))
    for name, entry in entries.items():
        page = experiment.render(root="../", entry=entry, **values)
        write_text(folder / "experiments" / f"{name}.html", page)
        if results := entry.record.results:
            plots = losses.render(plots=loss_plots(results), width=WIDTH, height=HEIGHT)
            write_text(folder / entry.curves, plots)
    for asset in ("report.css", "report.js"):
        text = (files("pipeline.report") / "templates" / asset).read_text(encoding="utf-8")
        write_text(folder / "media" / asset, text)


def _table(entries: Mapping[str, ReportEntry]) -> dict[str, Any]:
    """Returns what the script needs to compare, filter and sort the experiments.

    Settings that are the same for all of them are left out: of a thousand experiments they would
    be most of the page.
    """
    records = [entry.record for entry in entries.values()]
    texts = [{key: setting_text(value) for key, value in r.settings.items()} for r in records]
    keys = dict.fromkeys(key for each in texts for key in each)
    differing = [key for key in keys if len({each.get(key) for each in texts}) > 1]
    return {
        "settings": differing,
        "losses": _losses(records),
        "experiments": [
            {
                "name": entry.record.name,
                "image": entry.image and entry.image.path,
                "reason": entry.record.reason,
                "curves": entry.curves,
                "settings": [each.get(key, "") for key in differing],
            }
            for entry, each in zip(entries.values(), texts, strict=True)
        ],
    }


def _losses(records: Sequence[ExperimentRecord]) -> list[str]:
    """Returns the total loss and the loss terms that are not 0 in all saved pictures."""
    results = [record.results for record in records if record.results]
    terms = dict.fromkeys(term for each in results for term in each.terms)
    return [t for t in terms if any(each.metrics.get(f"saved_{t}") for each in results)]


def _figure(
    name: str, layout: Figure, entries: Mapping[str, ReportEntry], folder: Path
) -> dict[str, Any]:
    """Writes the contact sheet and the plot of a figure, and returns its values in templates."""
    shown = [entries[experiment] for experiment in layout.experiments]
    captions = differing_settings([entry.record for entry in shown])
    rows = [[entries[experiment] for experiment in row] for row in layout.rows]
    lines = {
        experiment: [f"{key} {value}" for key, value in settings.items()] or [experiment]
        for experiment, settings in captions.items()
    }
    tiles = [[(e.image and folder / e.image.path, lines[e.record.name]) for e in r] for r in rows]
    write_contact_sheet(layout, tiles, folder / f"sheets/{name}.png")
    complete = [entry.record for entry in shown if entry.image]
    measurement = None
    if layout.measure and len(complete) > 1:
        measurement = MEASURES[layout.measure](complete, folder / f"media/figures/{name}.svg")
    return {
        "name": name,
        "layout": layout,
        "rows": rows,
        "captions": captions,
        "inputs": {e.record.images[role]: e.inputs[role] for e in shown for role in e.inputs},
        "terms": _losses([entry.record for entry in shown]),
        "measurement": measurement,
    }


def _add_jpeg(source: Path, path: str, folder: Path) -> Picture:
    if not (folder / path).is_file():
        picture = read_picture(source)
        picture.thumbnail((JPEG_EDGE, JPEG_EDGE), Image.Resampling.LANCZOS)
        with replacing(folder / path) as temporary:
            picture.save(temporary, format="JPEG", quality=JPEG_QUALITY)
    return _picture(path, folder)


def _add_copy(source: Path, path: str, folder: Path) -> Picture:
    with replacing(folder / path) as temporary:
        shutil.copyfile(source, temporary)
    return _picture(path, folder)


def _picture(path: str, folder: Path) -> Picture:
    with Image.open(folder / path) as picture:
        return Picture(path, *picture.size)
