"""The report as a whole: pages of all experiments, figure by figure, and a table of them in W&B."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline import paths
from pipeline.config.schema import ReportSettings, Tracking
from pipeline.experiments.results import read_records
from pipeline.report.media import add_pictures
from pipeline.report.pages import write_pages
from pipeline.report.wandb_table import log_table


def build_report(plan: ReportSettings, tracking: Tracking) -> None:
    """Replaces the report in ``reports``, and logs a table of its experiments to W&B.

    The earlier report stays until all of the new one is written.

    Args:
        plan: the experiments to show. A folder in ``data/experiments`` that belongs to none of
            them is ignored, since removed experiments leave their results behind. An experiment
            without results is shown with the reason.
        tracking: the section of params.yaml.

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
    log_table(finished, plan, tracking)
