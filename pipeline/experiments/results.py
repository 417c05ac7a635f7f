"""Results of experiments: reads the folder of a finished run and checks that it is current."""

import csv
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from pipeline import paths
from pipeline.config.schema import Experiment, ReportSettings
from pipeline.errors import UserError
from pipeline.files import read_json, sha256
from pipeline.networks.layers import LAYERS
from pipeline.records.locks import sole_run
from pipeline.records.status import read_failure

OUTPUTS = ["image.png", "intermediates", "history.csv"]
OUTPUTS += ["metrics.json", "provenance.json", "status.json"]
"""What a finished run leaves in ``data/experiments/NAME``."""
COMPARED = "total", "content", "style"
"""The losses in metrics.json; what else is there are measures."""
WEIGHTED = "_weighted"
"""Ends the columns of the history with the weighted parts of loss terms."""
FEW = 4
"""Settings that differ in a figure up to which all are shown below each picture."""
LOCK_FILE = Path("dvc.lock")
_NETWORKS = {"weights": paths.WEIGHTS_FILE, "warm_start_weights": paths.EMBEDDED_FILE}


@dataclass(frozen=True)
class Results:
    """The outputs of a finished run.

    Attributes:
        metrics: the measures of the saved picture, and the total, content and style loss.
        counts: of evaluations and iterations.
        losses: of the image as optimised, as ``saved_…`` and, after earlier phases, ``start_…``.
        history: {column of ``history.csv``: its values} of the main phase. Earlier phases use
            another network or size, so their losses are not comparable.
        notes: sentences about anything unusual in the run.
        intermediates: {evaluation: path of the image at that evaluation}.
        timelapse: path of the animation of them, if the settings ask for it.
    """

    metrics: dict[str, float]
    counts: dict[str, int]
    losses: dict[str, float]
    provenance: dict[str, Any]
    history: dict[str, list[float]]
    notes: list[str]
    image: Path
    intermediates: dict[int, Path]
    timelapse: Path | None = None

    @property
    def parts(self) -> list[str]:
        """The columns of the history with parts of loss terms, such as ``style_conv1_1``."""
        return [c.removesuffix(WEIGHTED) for c in self.history if c.endswith(WEIGHTED)]

    @property
    def terms(self) -> list[str]:
        """The columns of the history with the total loss and the loss terms, all weighted."""
        columns = list(self.history)
        losses = columns[columns.index("iteration") + 1 : columns.index("gradient_norm")]
        return [c for c in losses if c not in self.parts and not c.endswith(WEIGHTED)]


@dataclass(frozen=True)
class ExperimentRecord:
    """One experiment with its results, if it has any.

    Attributes:
        settings: all of them as plain values, the names of its pictures first.
        changed: keys whose value differs from ``defaults``.
        images: {role: name of the picture} of those that its losses or its start use.
        results: None if there are none of the current plan and network.
        reason: why there are no results, and how to compute them.
    """

    name: str
    settings: dict[str, Any]
    changed: frozenset[str]
    images: dict[str, str]
    results: Results | None
    reason: str = ""

    @property
    def finished(self) -> Results:
        assert self.results is not None, f"{self.name} has no results"
        return self.results


def has_current_results(name: str) -> bool:
    """Returns whether an experiment has all its results, of its current plan and network.

    Results of other settings, pictures, code or weights would be shown under a wrong name.
    """
    folder, plan = paths.EXPERIMENTS / name, paths.plan(name)
    if not plan.is_file() or not all((folder / output).exists() for output in OUTPUTS):
        return False
    if lacks_recorded_results(name):
        return False
    provenance = read_json(folder / "provenance.json")
    return provenance.get("plan") == sha256(plan) and all(
        provenance.get("inputs", {}).get(role)
        in (None, _sha256_of_version(file, file.stat().st_mtime_ns))
        for role, file in _NETWORKS.items()
        if file.is_file()
    )


def lacks_recorded_results(name: str) -> bool:
    """Returns whether DVC has results of the current plan and network that are not all here.

    They were computed, and are in DVC's cache or in its remote: in a clone, or after a checkout
    that was interrupted.

    Raises:
        UserError: dvc.lock cannot be read.
    """
    plan = paths.plan(name)
    if not plan.is_file() or not LOCK_FILE.is_file():
        return False
    stages = _read_lock(LOCK_FILE.stat().st_mtime_ns)
    recorded, network = (stages.get(stage, {}) for stage in (f"stylize@{name}", "backbone"))
    now = {out["path"]: out.get("md5") for out in network.get("outs", [])}
    now[plan.as_posix()] = hashlib.md5(plan.read_bytes(), usedforsecurity=False).hexdigest()
    then = {dependency["path"]: dependency.get("md5") for dependency in recorded.get("deps", [])}
    return now.items() <= then.items() and not all(
        sum(1 for _ in path.iterdir()) >= out.get("nfiles", 0) if path.is_dir() else path.is_file()
        for path, out in ((Path(out["path"]), out) for out in recorded["outs"])
    )


@lru_cache(maxsize=1)
def _read_lock(modified_ns: int) -> dict[str, Any]:  # noqa: ARG001
    """Returns {stage: what dvc.lock records of it}; the file is read again only after a change."""
    try:
        # The loader in C takes a tenth of the time.
        content = yaml.load(LOCK_FILE.read_bytes(), Loader=yaml.CSafeLoader)
        stages: dict[str, Any] = content["stages"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(
            f"{LOCK_FILE} is not as DVC writes it, perhaps because a merge left its marks there. "
            f"Restore it with `git checkout {LOCK_FILE}`"
        ) from error
    return stages


def set_others_aside(names: Collection[str]) -> None:
    """Moves the results of all experiments but these from ``data/experiments`` to ``data/removed``.

    What is in ``data/experiments`` decides whether DVC writes the report again, and in a clone
    there are no results of removed experiments. Those of a run that goes on are left alone.
    """
    for folder in paths.EXPERIMENTS.glob("*"):
        if folder.name in names or not folder.is_dir():
            continue
        with suppress(UserError), sole_run(folder.name):
            removed = paths.REMOVED / folder.name
            if removed.exists():
                shutil.rmtree(removed)
            paths.REMOVED.mkdir(exist_ok=True)
            shutil.move(folder, removed)


@lru_cache
def _sha256_of_version(file: Path, modified_ns: int) -> str:  # noqa: ARG001
    """Returns the hash of a file, which is read again only after a change."""
    return sha256(file)


def read_records(plan: ReportSettings) -> dict[str, ExperimentRecord]:
    """Returns {experiment: its settings and results}."""
    defaults = plan.defaults.model_dump(mode="json")
    return {name: _read_record(name, each, defaults) for name, each in plan.experiments.items()}


def differing_keys(records: Sequence[ExperimentRecord]) -> list[str]:
    """Returns the settings whose values, as text, are not equal in all experiments."""
    keys = dict.fromkeys(key for record in records for key in record.settings)
    return [
        key for key in keys if len({setting_text(each.settings.get(key)) for each in records}) > 1
    ]


def differing_settings(records: Sequence[ExperimentRecord]) -> dict[str, dict[str, str]]:
    """Returns {experiment: {setting: its value as text}} of the settings that are not all equal.

    Of more than ``FEW`` settings, an experiment has those whose value is not the most frequent one.
    """
    differing = differing_keys(records)
    texts = {r.name: {key: setting_text(r.settings.get(key)) for key in differing} for r in records}
    counts = {key: Counter(each[key] for each in texts.values()) for key in differing}
    usual = {}
    if len(differing) > FEW:
        usual = {key: counts[key].most_common(1)[0][0] for key in differing}
    return {
        name: {key: each[key] for key in differing if each[key] != usual.get(key)}
        for name, each in texts.items()
    }


def setting_text(value: Any) -> str:
    """Returns a setting as text; layers whose equal weights add up to 1 are listed by name."""
    if isinstance(value, Mapping):
        if value and set(value) <= set(LAYERS) and set(value.values()) == {1 / len(value)}:
            return ", ".join(value)
        return ", ".join(f"{key} {setting_text(each)}" for key, each in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(setting_text, value)) or "none"
    if isinstance(value, float):
        return f"{value:.12g}"
    return "none" if value is None else str(value)


def _read_record(name: str, experiment: Experiment, defaults: dict[str, Any]) -> ExperimentRecord:
    values = experiment.model_dump(mode="json")
    settings = {key: values[key] for key in ("content", "style")} | values
    changed = frozenset(key for key, value in settings.items() if value != defaults.get(key))
    images = experiment.used_images
    if has_current_results(name):
        return ExperimentRecord(name, settings, changed, images, _read_results(name))
    if failure := read_failure(name):
        reason = f"The latest run failed: {failure}"
    elif (paths.EXPERIMENTS / name / "image.png").is_file():
        reason = "Its results were made with other settings, pictures, code or weights than now."
    else:
        reason = "It has not been run yet."
    remedy = f"To compute it: dvc repro stylize@{name}"
    return ExperimentRecord(name, settings, changed, images, None, f"{reason} {remedy}")


def _read_results(name: str) -> Results:
    folder = paths.EXPERIMENTS / name
    metrics, provenance, status = (
        json.loads((folder / f"{file}.json").read_bytes())
        for file in ("metrics", "provenance", "status")
    )
    with (folder / "history.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.pop("stage") == "main"]
    notes = list(status["notes"])
    if status["kind"] != "budget":
        notes.append(f"Ended by {status['kind']}: {status['reason']}")
    image, intermediates = folder / "image.png", sorted((folder / "intermediates").glob("*.png"))
    timelapse = folder / paths.TIMELAPSE
    return Results(
        metrics=metrics,
        counts=status["counts"],
        losses=status["losses"],
        provenance=provenance,
        history={column: [float(row[column]) for row in rows] for column in rows[0]},
        notes=notes,
        image=image,
        intermediates={int(file.stem): file for file in intermediates},
        timelapse=timelapse if timelapse.is_file() else None,
    )
