"""A table of all experiments in W&B, with their pictures, settings and metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from pipeline import paths
from pipeline.config.schema import ReportSettings, Tracking
from pipeline.records.tracking import tracked_run, wandb_image
from pipeline.report.media import Picture, ReportEntry


def log_table(entries: Mapping[str, ReportEntry], plan: ReportSettings, tracking: Tracking) -> None:
    """Logs a W&B run with one table, which has a row for each experiment.

    Args:
        entries: experiments with results.
        plan: the figures that show them.
        tracking: the section of params.yaml.
    """
    import wandb

    roles = dict.fromkeys(role for entry in entries.values() for role in entry.inputs)
    metrics = dict.fromkeys(key for e in entries.values() for key in e.record.finished.metrics)
    config = {"experiments": list(entries)}
    root = paths.shared_root()
    with tracked_run(tracking, root=root, name="report", job_type="report", config=config) as run:
        table = wandb.Table(["experiment", "figure", *roles, "result", "settings", *metrics])
        picture = cache(_picture)  # an input picture is in many rows
        for name, entry in entries.items():
            images, changed = entry.record.images, sorted(entry.record.changed)
            inputs = {role: picture(each, images[role]) for role, each in entry.inputs.items()}
            table.add_data(
                name,
                plan.figure_of(name),
                *map(inputs.get, roles),
                picture(entry.image, name),
                json.dumps({key: entry.record.settings[key] for key in changed}),
                *map(entry.record.finished.metrics.get, metrics),
            )
        run.log({"experiments": table})


def _picture(picture: Picture, caption: str) -> Any:
    return wandb_image(paths.REPORTS / picture.path, caption)
