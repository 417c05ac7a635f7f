"""The report as a whole: pages of all experiments, figure by figure, and a table of them in W&B."""

import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline import paths
from pipeline.config.schema import ReportSettings, Tracking
from pipeline.experiments.results import read_records
from pipeline.records.tracking import tracked_run, wandb_image
from pipeline.report.pages import Picture, ReportEntry, add_pictures, write_pages


def build_report(plan: ReportSettings, tracking: Tracking) -> None:
    """Replaces the report in ``reports``, and logs a table of its experiments to W&B.

    The earlier report stays until all of the new one is written. An experiment without results is
    shown with the reason. A folder in ``data/experiments`` of no experiment in the plan is ignored,
    since removed experiments leave their results behind.

    Raises:
        UserError: a picture cannot be read, or W&B refuses its settings.
    """
    records = read_records(plan)
    paths.REPORTS.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix=".new-", dir=paths.REPORTS) as name:
        folder = Path(name)
        entries = {name: add_pictures(record, folder) for name, record in records.items()}
        write_pages(entries, plan, folder)
        for new in folder.iterdir():
            old = paths.REPORTS / new.name
            if old.is_dir():
                shutil.rmtree(old)
            new.replace(old)
    finished = {name: entry for name, entry in entries.items() if entry.image}
    missing = len(entries) - len(finished)
    without = f", {missing} without results" if missing else ""
    print(f"report: {len(entries)} experiments{without} in {paths.REPORTS / 'index.html'}")
    _log_table(finished, plan, tracking)


def _log_table(
    entries: Mapping[str, ReportEntry], plan: ReportSettings, tracking: Tracking
) -> None:
    """Logs a W&B run with one table, which has a row for each experiment with results."""
    import wandb

    @cache  # an input picture is in many rows
    def shown(picture: Picture, caption: str) -> Any:
        return wandb_image(paths.REPORTS / picture.path, caption)

    roles = dict.fromkeys(role for entry in entries.values() for role in entry.inputs)
    metrics = dict.fromkeys(key for e in entries.values() for key in e.record.finished.metrics)
    config = {"experiments": list(entries)}
    root = paths.shared_root()
    with tracked_run(tracking, root=root, name="report", job_type="report", config=config) as run:
        table = wandb.Table(["experiment", "figure", *roles, "result", "settings", *metrics])
        for name, entry in entries.items():
            record = entry.record
            inputs = {role: shown(each, record.images[role]) for role, each in entry.inputs.items()}
            table.add_data(
                name,
                plan.figure_of(name),
                *map(inputs.get, roles),
                shown(entry.image, name),
                json.dumps({key: record.settings[key] for key in sorted(record.changed)}),
                *map(record.finished.metrics.get, metrics),
            )
        run.log({"experiments": table})
