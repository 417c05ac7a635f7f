"""Stage ``report``: every experiment of params.yaml, side by side, on one static page.

Reads the outputs of the cells by the names in params.yaml, never by what lies in a folder: a
removed experiment leaves its files behind.
"""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from pipeline import paths
from pipeline.errors import command_line
from pipeline.files import replacing, write_text
from pipeline.params import read_params
from pipeline.pictures import read_picture, write_png
from pipeline.plots import loss_curves
from pipeline.schema import Experiment, Params
from pipeline.tracking import logged_picture, tracked_run

MEDIA = paths.REPORTS / "media"
THUMBNAIL = 640
"""Long edge of the content and style pictures in the report, in pixels."""


@dataclass(frozen=True)
class Cell:
    """One finished experiment, as the page shows it; pictures by paths relative to ``reports``."""

    name: str
    settings: dict[str, Any]
    changed: dict[str, Any]
    metrics: dict[str, float]
    provenance: dict[str, Any]
    history: dict[str, list[float]]
    content: str
    style: str
    result: str
    intermediates: dict[int, str]


def report(params: Params) -> None:
    """Writes ``reports/index.html`` and ``reports/media``, and logs one table to W&B."""
    shutil.rmtree(MEDIA, ignore_errors=True)
    used = sorted({image for e in params.experiments.values() for image in (e.content, e.style)})
    cells = [_cell(name, settings, params) for name, settings in params.experiments.items()]
    loss_curves({cell.name: cell.history for cell in cells}, MEDIA / "losses.svg")
    environment = Environment(
        loader=PackageLoader("pipeline"), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("index.html").render(
        cells=cells, images={name: params.images[name] for name in used}
    )
    write_text(paths.REPORTS / "index.html", page)
    print(f"report: {len(cells)} experiments in {paths.REPORTS / 'index.html'}")
    _track(cells, params)


def _cell(name: str, settings: Experiment, params: Params) -> Cell:
    folder, media = paths.EXPERIMENTS / name, MEDIA / name
    for role in ("content", "style"):
        _thumbnail(paths.picture(name, role), media / f"{role}.png")
    _copy(folder / "image.png", media / "image.png")
    taken = sorted((folder / "intermediates").glob("*.png"))
    for picture in taken:
        _copy(picture, media / picture.name)
    pictures = {"content": settings.content, "style": settings.style}
    values, defaults = {**pictures, **settings.model_dump()}, params.defaults.model_dump()
    return Cell(
        name=name,
        settings=values,
        changed={key: value for key, value in values.items() if value != defaults.get(key)},
        metrics=_read_json(folder / "metrics.json"),
        provenance=_read_json(folder / "provenance.json"),
        history=_read_history(folder / "history.csv"),
        content=f"media/{name}/content.png",
        style=f"media/{name}/style.png",
        result=f"media/{name}/image.png",
        intermediates={int(picture.stem): f"media/{name}/{picture.name}" for picture in taken},
    )


def _thumbnail(source: Path, target: Path) -> None:
    picture = read_picture(source)
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    write_png(picture, target, {})


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _read_history(path: Path) -> dict[str, list[float]]:
    """Returns the columns of the main stage: those of a warm start are another network's."""
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.pop("stage") == "main"]
    return {column: [float(row[column]) for row in rows] for column in rows[0]}


def _track(cells: list[Cell], params: Params) -> None:
    """Logs one table: a row for each experiment, with its pictures, settings and metrics."""
    import wandb

    config = {"experiments": [cell.name for cell in cells]}
    metrics = list(cells[0].metrics)
    with tracked_run(
        params.tracking, root=paths.shared_root(), name="report", job_type="report", config=config
    ) as run:
        columns: list[str | int] = [
            "experiment",
            "content",
            "style",
            "result",
            "settings",
            *metrics,
        ]
        table = wandb.Table(columns=columns)
        for cell in cells:
            roles = {"content": cell.content, "style": cell.style, "result": cell.result}
            pictures = [
                logged_picture(read_picture(paths.REPORTS / path), f"{cell.name}: {role}")
                for role, path in roles.items()
            ]
            numbers = [cell.metrics.get(name) for name in metrics]
            table.add_data(cell.name, *pictures, json.dumps(cell.changed), *numbers)
        run.log({"experiments": table})


if __name__ == "__main__":
    command_line(lambda: report(read_params()))
