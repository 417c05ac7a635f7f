"""The table of all experiments in W&B."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import wandb
from PIL import Image

from pipeline import paths
from pipeline.experiments.results import ExperimentRecord, Results
from pipeline.report.experiment_table import experiment_table
from pipeline.report.pictures import Picture, ReportEntry


@pytest.fixture(autouse=True)
def _pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths.REPORTS.mkdir()
    for shade, name in enumerate(("a", "b", "c")):
        Image.new("RGB", (5 + shade, 3), (shade, 7, 9)).save(paths.REPORTS / f"{name}.png")


def entry(name: str, metrics: dict[str, Any], **settings: Any) -> ReportEntry:
    settings = {"content": "cat", "style": "waves", "size": 64} | settings
    results = Results(
        metrics=metrics,
        counts={},
        losses={},
        provenance={},
        history={},
        notes=[],
        image=Path(),
        intermediates={},
    )
    record = ExperimentRecord(name, settings, frozenset(), {}, results)
    return ReportEntry(record, {}, Picture(f"{name}.png", 5, 3))


def table_of(*entries: ReportEntry) -> wandb.Table:
    table: wandb.Table = experiment_table({each.record.name: each for each in entries})
    return table


def test_row_has_picture_differing_settings_and_all_measures() -> None:
    table = table_of(
        entry("a", {"total": 3.5, "structure": 0.25}, style_layers={"conv1_1": 0.5}, seed=1),
        entry("b", {"total": 2, "structure": 0.5}, style_layers={"conv2_1": 0.5}, seed=2),
    )
    assert table.columns == ["experiment", "result", "style_layers", "seed", "total", "structure"]
    assert [[row[0], *row[2:]] for row in table.data] == [
        ["a", "conv1_1 0.5", 1, 3.5, 0.25],
        ["b", "conv2_1 0.5", 2, 2, 0.5],
    ]
    assert [row[1].image.size for row in table.data] == [(5, 3), (6, 3)]


def test_measure_that_an_experiment_lacks_is_an_empty_cell() -> None:
    table = table_of(entry("a", {"total": 1.0}), entry("b", {"total": 2.0, "start_total": 9.0}))
    assert table.columns[2:] == ["total", "start_total"]
    assert [row[3] for row in table.data] == [None, 9.0]


def test_only_numbers_are_measures() -> None:
    metrics = {"total": 1.0, "kind": "budget", "parts": {"a": 1}, "converged": True}
    assert table_of(entry("a", metrics)).columns[2:] == ["total"]


def test_setting_that_is_not_always_a_number_is_a_text() -> None:
    table = table_of(entry("a", {}, threads=None), entry("b", {}, threads=2))
    assert [row[2] for row in table.data] == ["none", "2"]


def test_losses_and_pictures_of_one_name_are_two_columns() -> None:
    metrics = {"total": 3.0, "content": 1.0, "style": 2.0}
    table = table_of(entry("a", metrics), entry("b", metrics, style="gravel"))
    assert table.columns[2:] == ["style", "total", "content (measure)", "style (measure)"]


def test_picture_that_wandb_cannot_read_is_an_empty_cell() -> None:
    (paths.REPORTS / "b.png").unlink()
    table = table_of(entry("a", {}), entry("b", {}))
    assert [row[1] is None for row in table.data] == [False, True]
