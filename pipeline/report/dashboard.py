"""A W&B workspace with the curves, the pictures and the measures of all experiments."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.config.schema import ReportSettings, Tracking
from pipeline.errors import UserError
from pipeline.experiments.results import ExperimentRecord, differing_keys, read_records
from pipeline.records.tracking import PROJECT, first_line
from pipeline.report.experiment_table import TABLE, measure_names

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "Style transfer"


def save_dashboard(plan: ReportSettings, tracking: Tracking) -> str:
    """Saves the dashboard of all experiments with results as a new view, and returns its address.

    Raises:
        UserError: the package wandb-workspaces is missing, there are no results, or W&B has no key
            or does not answer.
    """
    try:
        import wandb
        import wandb_workspaces.workspaces  # noqa: F401
    except ImportError as error:
        raise UserError(
            "The dashboard needs the package wandb-workspaces, which is not installed. Install it: "
            "pip install --constraint constraints.txt --editable '.[dashboard]'"
        ) from error
    records = [record for record in read_records(plan).values() if record.results]
    if not records:
        raise UserError(
            "No experiment has results, and the dashboard shows what they measured. Compute some: "
            "python -m pipeline run"
        )
    project = tracking.project or os.environ.get("WANDB_PROJECT") or PROJECT
    try:
        entity = tracking.entity or os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity
        address: str = dashboard(records, entity or "", project).save().url
    except Exception as error:
        raise UserError(
            f"W&B does not save the dashboard ({first_line(error)}). Run `wandb login`, and see "
            f"that {project} is a project there: `python -m pipeline sync` uploads runs to it"
        ) from error
    return address


def dashboard(records: Sequence[ExperimentRecord], entity: str, project: str) -> "Workspace":
    """Returns the workspace that shows experiments with results; nothing is sent."""
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as workspaces

    terms = dict.fromkeys(term for record in records for term in record.finished.terms)
    settings = [key for key in differing_keys(records) if _plain(key, records)]
    axes = [panels.Config(f"settings.{key}") for key in settings]
    axes += [panels.SummaryMetric(name) for name in measure_names(records)]
    sections = {
        "Losses": [
            panels.LinePlot(title=term, x="evaluation", y=[term], log_y=True) for term in terms
        ],
        "Pictures": [
            panels.MediaBrowser(title="Result", media_keys=["result"], num_columns=4),
            panels.MediaBrowser(title="Intermediate", media_keys=["intermediate"], num_columns=4),
        ],
        "Settings and measures": [
            panels.ParallelCoordinatesPlot(
                columns=[panels.ParallelCoordinatesPlotColumn(metric=axis) for axis in axes]
            )
        ],
        "All experiments": [panels.WeavePanelSummaryTable(table_name=TABLE)],
    }
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            workspaces.Section(name=name, panels=list(shown), is_open=True)
            for name, shown in sections.items()
        ],
    )


def _plain(key: str, records: Sequence[ExperimentRecord]) -> bool:
    """Returns whether a setting has an axis: its values are numbers and texts, not mappings."""
    values: list[Any] = [record.settings.get(key) for record in records]
    return all(isinstance(value, str | int | float | None) for value in values)
