"""What a report knows of an experiment: what was asked for, and what its run left, if it ran."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import paths
from pipeline.config.schema import Params
from pipeline.files import sha256
from pipeline.networks.layers import LAYERS
from pipeline.records.status import Whereabouts, read_failure, read_run


@dataclass(frozen=True)
class Results:
    """The outputs of a finished run.

    Attributes:
        metrics, provenance: as in their files.
        history: {column of history.csv: its values}, of the main stage.
        notes: what was out of the ordinary in the run, a sentence each.
        image: the picture.
        intermediates: {evaluation: the picture as it was}.
        run: where W&B has it.
    """

    metrics: dict[str, float]
    provenance: dict[str, Any]
    history: dict[str, list[float]]
    notes: list[str]
    image: Path
    intermediates: dict[int, Path]
    run: Whereabouts


@dataclass(frozen=True)
class Cell:
    """One experiment of params.yaml.

    Attributes:
        name: of the experiment.
        settings: all of them, content and style first, plain values.
        changed: keys whose value is not that of ``defaults``.
        roles: content, style, or both: the pictures that its losses or its start come from.
        results: of its run, None without one.
        reason: why there are no results.
    """

    name: str
    settings: dict[str, Any]
    changed: frozenset[str]
    roles: tuple[str, ...]
    results: Results | None
    reason: str = ""

    @property
    def finished(self) -> Results:
        """The results of a cell that has some."""
        assert self.results is not None, f"{self.name} has no results"
        return self.results


def read_cells(params: Params) -> dict[str, Cell]:
    """Returns the cell of every experiment.

    Results of other settings, pictures or weights than are here now count as none: they would be
    shown under a false name.
    """
    files = {"weights": paths.WEIGHTS_FILE, "warm_start_weights": paths.EMBEDDED_FILE}
    weights = {role: sha256(file) for role, file in files.items() if file.is_file()}
    return {name: _read_cell(name, params, weights) for name in params.experiments}


def _read_cell(name: str, params: Params, weights: dict[str, str]) -> Cell:
    experiment = params.experiments[name]
    dumped = _plain(experiment.model_dump())
    defaults = _plain(params.defaults.model_dump())
    settings = {"content": experiment.content, "style": experiment.style, **dumped}
    changed = frozenset(key for key, value in settings.items() if value != defaults.get(key))
    roles = tuple(
        role for role in ("content", "style") if role in (*experiment.image_roles, experiment.init)
    )
    remedy = f"To run it: dvc repro stylize@{name}"
    try:
        results = _read_results(name)
    except FileNotFoundError:
        failure = read_failure(name)
        reason = f"When last run: {failure}" if failure else "Not run yet."
        return Cell(name, settings, changed, roles, None, f"{reason} {remedy}")
    if results.provenance["settings"] != dumped or not _same_inputs(settings, results, weights):
        reason = "Made with other settings, pictures or weights than are here now."
        return Cell(name, settings, changed, roles, None, f"{reason} {remedy}")
    return Cell(name, settings, changed, roles, results)


def _same_inputs(settings: dict[str, Any], results: Results, weights: dict[str, str]) -> bool:
    now = dict(weights)
    for role in ("content", "style"):
        file = paths.picture(settings[role])
        if file.is_file():
            now[role] = sha256(file)
    return all(now.get(key, then) == then for key, then in results.provenance["inputs"].items())


def variations(cells: Sequence[Cell]) -> dict[str, dict[str, str]]:
    """Returns {experiment: {setting: its value as text}} for what is not the same in all cells."""
    keys = list(cells[0].settings) if cells else []
    varied = [key for key in keys if any(c.settings[key] != cells[0].settings[key] for c in cells)]
    return {cell.name: {key: as_text(cell.settings[key]) for key in varied} for cell in cells}


def as_text(value: Any) -> str:
    """Returns a setting as a reader wants it: layers that share a weight of 1 by their names."""
    if isinstance(value, Mapping):
        if value and set(value) <= set(LAYERS) and set(value.values()) == {1 / len(value)}:
            return ", ".join(value)
        return ", ".join(f"{key} {as_text(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(as_text, value)) or "none"
    if isinstance(value, float):
        return f"{value:.12g}"
    return "none" if value is None else str(value)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _read_results(name: str) -> Results:
    folder = paths.EXPERIMENTS / name
    image = folder / "image.png"
    if not image.is_file():
        raise FileNotFoundError(image)
    return Results(
        metrics=_read_json(folder / "metrics.json"),
        provenance=_read_json(folder / "provenance.json"),
        history=_read_history(folder / "history.csv"),
        notes=_read_notes(folder / "status.json"),
        image=image,
        intermediates={
            int(file.stem): file for file in sorted((folder / "intermediates").glob("*.png"))
        },
        run=read_run(image),
    )


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _read_notes(path: Path) -> list[str]:
    """Returns what a run's status has to say, nothing of one that simply used its budget."""
    status = _read_json(path)
    notes: list[str] = status["notes"]
    if status["kind"] != "budget":
        notes.append(f"Ended by {status['kind']}: {status['reason']}")
    return notes


def _read_history(path: Path) -> dict[str, list[float]]:
    """Returns the columns of the main stage: those before are another network's, or size's."""
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.pop("stage") == "main"]
    return {column: [float(row[column]) for row in rows] for column in rows[0]}
