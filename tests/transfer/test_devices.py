"""Runs of one picture by two processes: its result, its checkpoints, and its faults."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from conftest import tiny_params, write_params
from test_frozen import small_weights
from test_tiles import picture, run

from pipeline import paths
from pipeline.config.params import read_params
from pipeline.config.plan import read_plan
from pipeline.errors import UserError
from pipeline.experiments.executors.local import LocalExecutor
from pipeline.experiments.progress import ProgressDisplay
from pipeline.networks.shared_features import SharedFeatures
from pipeline.runtime.process_group import process_group


def test_run_by_two_processes_has_the_picture_of_one_and_goes_on_to_the_same_bits(
    prepared: Path, weights_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"tile": 16, "precision": "float32", "threads": 2}
    run(weights_file, **settings)
    one = picture()
    run(weights_file, devices=2, **settings)
    two = picture()
    assert np.abs(one - two).max() <= 1

    def stop(_: str, done: float, *__: Any) -> None:
        if done > 7:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(weights_file, stop, devices=2, **settings)
    capsys.readouterr()
    run(weights_file, devices=2, **settings)
    assert "goes on after evaluation 7" in capsys.readouterr().out
    assert np.array_equal(picture(), two)
    assert not others()


def test_image_without_a_tile_for_each_is_computed_by_one_and_says_so(
    prepared: Path, weights_file: Path
) -> None:
    run(weights_file, devices=2, evaluations=2)
    status = json.loads((paths.EXPERIMENTS / "first/status.json").read_text())
    note = "The phase main was computed by one of 2 devices: its image has no tile for each"
    assert note in status["notes"]


def test_worker_process_computes_with_several_devices(prepared: Path, weights_file: Path) -> None:
    """It is a daemon, which multiprocessing lets have no children."""
    params: Any = tiny_params(weights_file)
    params["defaults"] |= {"evaluations": 2, "tile": 16, "size": 48, "devices": 2}
    write_params(prepared, params | {"tracking": {"mode": "disabled"}})
    with ProgressDisplay() as display, LocalExecutor(1, 2, display) as executor:
        options = read_params().run_options("first")
        outcome = executor.submit(read_plan("first"), options).result(timeout=120)
    assert not outcome.error
    status = json.loads((paths.EXPERIMENTS / "first/status.json").read_text())
    assert status["counts"]["evaluations"] == 2


def others() -> list[psutil.Process]:
    """Returns the processes that this one has started for a picture and that still run."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "pipeline.runtime.process_group" in child.cmdline():
                found.append(child)
    return found


def test_end_of_one_process_is_an_error_that_says_so() -> None:
    with pytest.raises(UserError, match=r"process 1 of the 2 .* ended with status -9"):
        evaluate_after_the_end_of_one()
    assert not others()


def test_process_whose_leader_is_gone_before_it_began_ends(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    arguments = map(str, (gone.pid, tmp_path / "store", 1, 2, "cpu", 1))
    command = [sys.executable, "-m", "pipeline.runtime.process_group", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=60, check=False)
    assert done.returncode == -signal.SIGTERM


def evaluate_after_the_end_of_one() -> None:
    with process_group(2, torch.device("cpu")) as group:
        features = SharedFeatures(small_weights(), "avg", "float32", 16, group)
        group.others[0].kill()
        group.others[0].wait()
        features(torch.zeros(1, 3, 64, 64), {"gram_matrix": ["conv1_1"]})


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    refused = pytest.raises(UserError, match=r"devices is 3, but torch finds 2 .* Use at most 2")
    with refused, process_group(3, torch.device("cuda")):
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tile": None}, r"the tiles are what 2 devices divide, and tile is null"),
        ({"histogram_weight": 1.0}, r"histogram needs .* Set devices to 1"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    settings: dict[str, Any], message: str, prepared: Path, weights_file: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run(weights_file, devices=2, **settings)
