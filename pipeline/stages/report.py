"""Stage ``report``: writes all experiments, figure by figure, as a static website.

The experiments are those of the plan, not those that have a folder: a removed experiment leaves its
folder behind. An experiment without results is shown as such.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from pipeline import paths
from pipeline.config.params import read_params
from pipeline.config.plan import read_report_plan
from pipeline.config.schema import ReportSettings, Tracking
from pipeline.experiments.results import read_cells
from pipeline.imaging.picture_files import read_picture
from pipeline.records.tracking import logged_picture, tracked_run
from pipeline.report.media import MEDIA, Picture, Shown, show
from pipeline.report.pages import PAGES, SHEETS, write_pages
from pipeline.stages import run_stage


def report() -> None:
    """Writes the report into ``reports``, and logs one table of all experiments to W&B.

    Raises:
        UserError: the report has no plan, or params.yaml has mistakes.
    """
    plan, tracking = read_report_plan(), read_params().tracking
    for folder in (MEDIA, PAGES, SHEETS):
        shutil.rmtree(folder, ignore_errors=True)
    shown = {name: show(cell) for name, cell in read_cells(plan).items()}
    write_pages(shown, plan)
    finished = {name: each for name, each in shown.items() if each.image}
    missing = (
        f", {len(shown) - len(finished)} without results" if len(finished) < len(shown) else ""
    )
    print(f"report: {len(shown)} experiments{missing} in {paths.REPORTS / 'index.html'}")
    _track(finished, plan, tracking)


def _track(finished: Mapping[str, Shown], plan: ReportSettings, tracking: Tracking) -> None:
    """Logs one table: a row for each finished experiment, with pictures, settings and metrics."""
    import wandb

    metrics = list(dict.fromkeys(key for each in finished.values() for key in _metrics(each)))
    columns = ["experiment", "figure", "content", "style", "result", "settings", *metrics]
    config = {"experiments": list(finished)}
    with tracked_run(
        tracking,
        root=paths.shared_root(),
        name="report",
        job_type="report",
        config=config,
    ) as run:
        table = wandb.Table(columns=list[str | int](columns))
        shown = cache(_logged)  # most pictures are those of many rows
        for name, each in finished.items():
            pictures = {
                role: shown(picture, each.cell.settings[role])
                for role, picture in each.inputs.items()
            }
            assert each.image is not None
            pictures["result"] = shown(each.image, name)
            changes = {key: each.cell.settings[key] for key in sorted(each.cell.changed)}
            table.add_data(
                name,
                plan.figure_of(name),
                *(pictures.get(role) for role in ("content", "style", "result")),
                json.dumps(changes),
                *(_metrics(each).get(key) for key in metrics),
            )
        run.log({"experiments": table})


def _logged(picture: Picture, caption: str) -> Any:
    return logged_picture(read_picture(paths.REPORTS / picture.path), caption)


def _metrics(each: Shown) -> dict[str, float]:
    return each.cell.finished.metrics


if __name__ == "__main__":
    run_stage(report)
