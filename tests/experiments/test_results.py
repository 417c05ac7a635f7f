"""Results count as results only for the plan and the network that they were made with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, save_picture
from finished_runs import edit_json, experiments_with_markup, finished, plan_experiments

from pipeline import paths
from pipeline.config.plan import read_report_plan
from pipeline.experiments.results import (
    OUTPUTS,
    ExperimentRecord,
    differing_settings,
    has_current_results,
    read_records,
    setting_text,
)

__all__ = ["finished"]


@pytest.fixture(autouse=True)
def _workspace(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def test_results_of_the_current_plan_and_network_are_current() -> None:
    assert has_current_results("first")
    assert not has_current_results("third")


@pytest.mark.parametrize("output", OUTPUTS)
def test_results_that_lack_an_output_are_not_current(output: str) -> None:
    path = paths.EXPERIMENTS / "first" / output
    path.rename(path.with_suffix(".gone"))
    assert not has_current_results("first")
    assert has_current_results("second")


def test_outputs_are_those_that_dvc_knows() -> None:
    stage = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]["stylize"]["do"]
    plots = (each if isinstance(each, str) else next(iter(each)) for each in stage["plots"])
    outputs = [*stage["outs"], *stage["metrics"], *plots]
    assert {Path(output).name for output in outputs} == set(OUTPUTS)


def test_results_of_other_settings_are_not_current() -> None:
    params = experiments_with_markup()
    params["experiments"]["first"]["content_weight"] = 9.0
    plan_experiments(params)
    assert not has_current_results("first")
    assert has_current_results("second")


def test_results_of_another_picture_are_not_current() -> None:
    save_picture(paths.picture("coffee"), (20, 30))
    plan_experiments(experiments_with_markup())
    assert has_current_results("first")
    assert not has_current_results("second")


def test_results_of_another_network_are_not_current() -> None:
    assert has_current_results("first")
    paths.WEIGHTS_FILE.write_bytes(b"others")
    assert not has_current_results("first")


def test_network_of_the_warm_start_counts_where_there_was_one() -> None:
    assert has_current_results("first")
    provenance = paths.EXPERIMENTS / "first" / "provenance.json"
    edit_json(provenance, inputs={"warm_start_weights": 64 * "0"})
    assert not has_current_results("first")


def test_results_of_an_earlier_version_of_the_project_are_not_current() -> None:
    edit_json(paths.EXPERIMENTS / "first" / "provenance.json", plan=None)
    assert not has_current_results("first")


@pytest.mark.parametrize("content", [b"", b'{"plan": "00', b"[]", b"\xff"])
def test_results_whose_record_is_damaged_are_not_current(content: bytes) -> None:
    (paths.EXPERIMENTS / "first" / "provenance.json").write_bytes(content)
    assert not has_current_results("first")


def test_results_are_checked_without_torch() -> None:
    code = "import sys, pipeline.experiments.results; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_losses_are_told_from_their_parts_by_the_columns_of_the_history() -> None:
    results = read_records(read_report_plan())["first"].finished
    assert results.terms == ["total", "content", "style", "edges"]
    assert results.parts == ["content_conv2_2", "style_conv1_1"]


def test_images_are_those_that_a_loss_or_the_start_uses() -> None:
    params = experiments_with_markup()
    params["experiments"]["first"]["content_weight"] = 0.0
    params["experiments"]["second"]["content_weight"] = 0.0
    params["figures"] = {}
    plan_experiments(params)
    records = read_records(read_report_plan())
    assert records["first"].images == {"style": "gravel"}
    assert records["second"].images == {"content": "coffee", "style": "gravel"}  # its start


def test_differing_settings_are_those_that_are_not_equal_in_all_experiments() -> None:
    def record(name: str, style: str) -> ExperimentRecord:
        return ExperimentRecord(name, {"style": style, "seed": 0}, frozenset(), {}, None)

    differing = differing_settings([record("one", "ihc"), record("two", "glass")])
    assert differing == {"one": {"style": "ihc"}, "two": {"style": "glass"}}


def test_of_many_differing_settings_each_experiment_shows_its_own() -> None:
    usual = {"style": "ihc"} | dict.fromkeys("abcde", 0)
    records = [
        ExperimentRecord(name, usual | own, frozenset(), {}, None)
        for name, own in (("plain", {}), *((key, {key: 1}) for key in "abcde"))
    ]
    own = {key: {key: "1"} for key in "abcde"}
    assert differing_settings(records) == {"plain": {}, **own}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"conv1_1": 0.5, "conv2_1": 0.5}, "conv1_1, conv2_1"),
        ({"conv1_1": 0.5, "conv2_1": 1.0}, "conv1_1 0.5, conv2_1 1"),
        ({"conv4_2": 2.0}, "conv4_2 2"),
        ({}, "none"),
        ({"lr": 1.0, "line_search_fn": None}, "lr 1, line_search_fn none"),
        ([1, 10], "1, 10"),
        (None, "none"),
        (0.0001, "0.0001"),
        (True, "True"),
    ],
)
def test_settings_read_as_people_write_them(value: Any, text: str) -> None:
    assert setting_text(value) == text
