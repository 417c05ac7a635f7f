"""The report as a whole: pages of all experiments, figure by figure, and their pictures in W&B."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline import paths
from pipeline.config.schema import ReportSettings, Tracking
from pipeline.errors import UserError
from pipeline.experiments.results import lacks_recorded_results, read_records, setting_text
from pipeline.imaging.picture_files import of_any_size
from pipeline.records.status import read_failure
from pipeline.records.tracking import takes_artifacts, tracked_run, wandb_image
from pipeline.report.experiment_table import TABLE, experiment_table
from pipeline.report.pages import write_pages
from pipeline.report.pictures import Picture, ReportEntry, add_pictures

NAMED = 10
"""How many experiments an error names."""


@of_any_size()
def build_report(plan: ReportSettings, tracking: Tracking) -> None:
    """Replaces the report in ``reports``, and logs its pictures to W&B.

    The earlier report stays until all of the new one is written. An experiment without results is
    shown with the reason.

    Raises:
        UserError: results that DVC has are not here, a picture is missing or cannot be read, or
            W&B refuses its settings.
    """
    _check_complete(list(plan.experiments))
    records = read_records(plan)
    paths.REPORTS.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix=".new-", dir=paths.REPORTS) as name:
        new, old = (Path(name) / which for which in ("new", "old"))
        entries = {name: add_pictures(record, new) for name, record in records.items()}
        write_pages(entries, plan, new)
        old.mkdir()
        for written in new.iterdir():
            shown = paths.REPORTS / written.name
            if shown.exists():
                shown.rename(old / written.name)
            written.rename(shown)
    finished = {name: entry for name, entry in entries.items() if entry.image}
    missing = len(entries) - len(finished)
    without = f", {missing} without results" if missing else ""
    print(f"report: {len(entries)} experiments{without} in {paths.REPORTS / 'index.html'}")
    _log_pictures(finished, plan, tracking)


def _check_complete(names: Sequence[str]) -> None:
    """Raises ``UserError`` if DVC has results that are not here, or plans are missing.

    DVC would record a report without them as that of all results. An experiment whose picture could
    not be fetched has no plan.
    """
    for name in names:
        if not paths.plan(name).is_file() and not read_failure(name):
            raise UserError(f"{paths.plan(name)} is missing. `dvc repro plan` writes it again")
    absent = list(filter(lacks_recorded_results, names))
    if absent:
        more = f" and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
        raise UserError(
            f"the results of {', '.join(absent[:NAMED])}{more} are recorded in dvc.lock but not "
            f"all in {paths.EXPERIMENTS}, and the report needs all of them. `dvc checkout` "
            "restores them from DVC's cache, `dvc repro --pull` from its remote, and `dvc repro` "
            "computes them again"
        )


def _log_pictures(
    entries: Mapping[str, ReportEntry], plan: ReportSettings, tracking: Tracking
) -> None:
    """Logs a W&B run with all results, one section for each figure, and with their inputs.

    Each picture is a file of the run. The table of all experiments has copies of the results.
    """
    pictures: dict[str, tuple[Picture, str]] = {}  # no name of a figure has a space in it
    for name, entry in entries.items():
        record = entry.record
        for role, picture in entry.inputs.items():
            pictures[f"input pictures/{record.images[role]}"] = picture, record.images[role]
        changed = {k: setting_text(v) for k, v in record.settings.items() if k in record.changed}
        settings = [f"{key} {value}" for key, value in changed.items()]
        loss = f"total loss {record.finished.losses['saved_total']:.4g}"
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
        if entries and takes_artifacts(run):
            table = {TABLE: experiment_table(entries)}
            run.log(table)
            run.summary.update(table)  # a W&B workspace shows tables of summaries
