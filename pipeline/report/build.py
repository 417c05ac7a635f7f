"""The report as a whole: pages of all experiments, figure by figure, and their pictures in W&B."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline import paths
from pipeline.config.schema import ReportSettings, Tracking
from pipeline.experiments.results import read_records, setting_text
from pipeline.records.tracking import tracked_run, wandb_image
from pipeline.report.pages import Picture, ReportEntry, add_pictures, write_pages


def build_report(plan: ReportSettings, tracking: Tracking) -> None:
    """Replaces the report in ``reports``, and logs its pictures to W&B.

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
    _log_pictures(finished, plan, tracking)


def _log_pictures(
    entries: Mapping[str, ReportEntry], plan: ReportSettings, tracking: Tracking
) -> None:
    """Logs a W&B run with all results, one section for each figure, and with their inputs.

    Each picture is a file of the run. Those of a ``wandb.Table`` are kept elsewhere, and recorded
    by absolute paths: ``wandb sync`` uploads none of them once the folder was moved.
    """
    pictures: dict[str, tuple[Picture, str]] = {}  # no name of a figure has a space in it
    for name, entry in entries.items():
        record = entry.record
        for role, picture in entry.inputs.items():
            pictures[f"input pictures/{record.images[role]}"] = picture, record.images[role]
        changed = {k: setting_text(v) for k, v in record.settings.items() if k in record.changed}
        settings = [f"{key} {value}" for key, value in changed.items()]
        loss = f"total loss {record.finished.metrics['saved_total']:.4g}"
        assert entry.image is not None
        section = plan.figure_of(name) or "other experiments"
        pictures[f"{section}/{name}"] = entry.image, ", ".join([name, *settings, loss])
    config = {"experiments": list(entries)}
    root = paths.shared_root()
    with tracked_run(tracking, root=root, name="report", job_type="report", config=config) as run:
        run.log(
            {
                key: wandb_image(paths.REPORTS / picture.path, caption)
                for key, (picture, caption) in pictures.items()
            }
        )
