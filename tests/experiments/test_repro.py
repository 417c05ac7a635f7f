"""Several experiments at a time come to what they come to one after another."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_picture, tiny_params, write_params
from projects import Project

from pipeline import paths
from pipeline.config.params import read_params
from pipeline.errors import UserError
from pipeline.experiments import runner as repro
from pipeline.runtime.device import SHARING
from pipeline.stages.stylize import stylize
from pipeline.transfer.memory import GIB


@pytest.fixture
def params(weights_file: Path) -> dict[str, Any]:
    params: Any = tiny_params(weights_file)
    params["tracking"] = {"mode": "disabled"}
    return params


def test_all_is_made_but_what_fails_and_a_second_time_nothing_runs(
    tmp_path: Path, params: dict[str, Any], prepared: Path
) -> None:
    params["defaults"]["threads"] = None
    params["experiments"]["third"] = {
        "content": "chelsea",
        "style": "gravel",
        "evaluations": 1,
        "first_step": 1e-9,
    }
    project = Project.new(tmp_path / "project", params)
    text = project.python("pipeline.experiments.runner", "2", check=False)
    assert "2 experiments at a time" in text
    assert "Running stage 'stylize@first'" not in text, "it was left to the last DVC"
    assert "Running stage 'stylize@second'" not in text
    assert "error: the image did not move" in text
    assert "failed to reproduce 'stylize@third'" in text
    for name in ("first", "second"):
        stylize(name, read_params())
        history = f"data/experiments/{name}/history.csv"
        assert (project.folder / history).read_bytes() == (prepared / history).read_bytes()
    project.change(lambda p: p["experiments"]["third"].update(first_step=0.01))
    text = project.python("pipeline.experiments.runner")
    assert "at a time" not in text
    assert "Running stage 'stylize@third'" in text
    assert "Running stage 'stylize@first'" not in text
    assert project.repro() == set()


def test_what_is_of_other_settings_or_weights_is_made_side_by_side_too(
    prepared: Path, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_params(prepared, params)
    for name in ("first", "second"):
        stylize(name, read_params())
    asked: list[list[str]] = []
    monkeypatch.setattr(repro, "_dvc", lambda *_: 0)
    monkeypatch.setattr(repro, "_fitting", len)
    monkeypatch.setattr(repro, "_side_by_side", lambda found, *_: asked.append([*found]))
    assert repro.repro() == 0
    assert asked == []
    params["defaults"]["evaluations"] = 7
    write_params(prepared, params)
    repro.repro()
    params["defaults"]["evaluations"] = 6
    write_params(prepared, params)
    paths.WEIGHTS_FILE.unlink()
    paths.WEIGHTS_FILE.write_bytes(b"other weights")
    repro.repro()
    assert asked == [["first", "second"]] * 2


def test_what_does_without_a_missing_picture_is_made_all_the_same(
    tmp_path: Path, params: dict[str, Any]
) -> None:
    params["images"]["lost"] = {"source": "data/own/lost.png"}
    params["experiments"]["third"] = {"content": "lost", "style": "gravel"}
    project = Project.new(tmp_path, params)
    text = project.python("pipeline.experiments.runner", check=False)
    assert "image 'lost' from data/own/lost.png: data/own/lost.png: there is no" in text
    assert "failed to reproduce 'fetch'" in text
    made = [
        (tmp_path / f"data/experiments/{name}/image.png").is_file() for name in ("first", "third")
    ]
    assert made == [True, False]
    save_picture(tmp_path / "data/own/lost.png")
    assert project.repro() == {"fetch", "stylize@third", "report"}


def test_edit_during_a_run_waits_for_the_next(tmp_path: Path, params: dict[str, Any]) -> None:
    """A cell's settings are those that DVC writes down, however late it begins."""
    project = Project.new(tmp_path, params)
    project.dvc("repro", "backbone", "fetch")
    project.change(lambda p: p["experiments"]["first"].update(content_weight=7.0))
    project.dvc("repro", "--single-item", "stylize@first")
    record = tmp_path / "data/experiments/first/provenance.json"
    assert json.loads(record.read_text())["settings"]["content_weight"] == 1.0
    assert "stylize@first" in project.repro()
    assert json.loads(record.read_text())["settings"]["content_weight"] == 7.0


def test_all_end_with_it(tmp_path: Path, params: dict[str, Any]) -> None:
    params["defaults"]["evaluations"] = 1_000_000
    project = Project.new(tmp_path, params)
    histories = [tmp_path / f"data/experiments/{name}/history.csv" for name in ("first", "second")]

    def rows() -> list[int]:
        return [path.read_text().count("\n") if path.is_file() else 0 for path in histories]

    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.experiments.runner", "2"],
        cwd=tmp_path,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        end = time.monotonic() + 180
        while min(rows()) < 20:
            assert time.monotonic() < end, "they do not run side by side"
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    time.sleep(3)
    before = rows()
    time.sleep(1)
    assert rows() == before


def test_as_many_as_cores_and_memory_have_room_for(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repro, "_cores", lambda: 16)
    monkeypatch.setattr("pipeline.runtime.device.available", lambda _: 3 * GIB)
    experiments = read_params().experiments
    assert 3 <= repro._fitting(experiments) <= 5
    monkeypatch.setattr("pipeline.runtime.device.available", lambda _: 300 * GIB)
    assert repro._fitting(experiments) == 16
    wide = {name: each.model_copy(update={"threads": 5}) for name, each in experiments.items()}
    assert repro._fitting(wide) == 3
    monkeypatch.setattr("pipeline.runtime.device.available", lambda _: 0)
    assert repro._fitting(experiments) == 1


def test_a_gpu_is_shared_by_a_few(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repro, "_cores", lambda: 16)
    monkeypatch.setattr("pipeline.runtime.device.available", lambda _: 300 * GIB)
    devices = iter(["cuda", "cuda", "mps", "mps", "cuda", "cpu"])
    monkeypatch.setattr(
        "pipeline.runtime.device.find_device", lambda _: torch.device(next(devices))
    )
    experiments = read_params().experiments
    assert len(experiments) == 2
    assert repro._fitting(experiments) == SHARING
    assert repro._fitting(experiments) == 1
    assert repro._fitting(experiments) == 1


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5", ""])
def test_number_of_jobs_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(UserError, match=f"JOBS is '{given}', but it must be a whole number"):
        repro._jobs([given])


def test_number_of_jobs_may_be_left_out() -> None:
    assert (repro._jobs([]), repro._jobs(["3"])) == (None, 3)
