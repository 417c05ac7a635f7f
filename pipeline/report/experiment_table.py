"""The table of all experiments in W&B: picture, settings that differ, measures."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import paths
from pipeline.experiments.results import ExperimentRecord, differing_keys, setting_text
from pipeline.records.tracking import wandb_image
from pipeline.report.pictures import ReportEntry

TABLE = "experiments"
"""The key under which the report's W&B run has the table."""


def experiment_table(entries: Mapping[str, ReportEntry]) -> Any:
    """Returns a ``wandb.Table`` with a row for each of these experiments, which have results.

    Its columns are the experiment's name, its picture, each setting that differs between the
    experiments, and each number of ``metrics.json``. A setting is a column of numbers if all of its
    values are numbers, else of texts. An experiment without a measure has an empty cell. Measures
    with the name of a setting, as the losses ``content`` and ``style``, say that they are measures.
    """
    import wandb

    records = [entry.record for entry in entries.values()]
    settings = {key: _cells(key, records) for key in differing_keys(records)}
    measures = measure_names(records)
    known = records[0].settings
    titles = [f"{name} (measure)" if name in known else name for name in measures]
    table = wandb.Table(columns=["experiment", "result", *settings, *titles])
    for row, (name, entry) in enumerate(entries.items()):
        assert entry.image is not None
        table.add_data(
            name,
            wandb_image(paths.REPORTS / entry.image.path, name),
            *(cells[row] for cells in settings.values()),
            *(entry.record.finished.metrics.get(measure) for measure in measures),
        )
    return table


def measure_names(records: Sequence[ExperimentRecord]) -> list[str]:
    """Returns the names of the numbers in the ``metrics.json`` of any experiment."""
    measured = dict.fromkeys(name for record in records for name in record.finished.metrics)
    return [
        name
        for name in measured
        if all(_is_number(record.finished.metrics.get(name, 0)) for record in records)
    ]


def _cells(key: str, records: Sequence[ExperimentRecord]) -> list[Any]:
    values = [record.settings.get(key) for record in records]
    return values if all(map(_is_number, values)) else list(map(setting_text, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
