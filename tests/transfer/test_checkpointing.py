"""An interrupted run continues to the same bits, and a changed one begins anew."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, tiny_params, write_params
from test_stylize import history, outputs
from test_tracking import inspected

from pipeline import paths
from pipeline.errors import UserError
from pipeline.records.checkpoints import Checkpoints, sole_run
from pipeline.stages.stylize import stylize
from pipeline.transfer.callbacks import ProgressBar
from pipeline.transfer.module import StyleTransfer

EVALUATIONS = 20
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "line search": {"lbfgs": {"line_search_fn": "strong_wolfe"}},
    "warm start": {"warm_start": "embedded", "warm_evaluations": 12, "size": 48},
    "coarse to fine": {"schedule": "coarse_to_fine", "coarse_evaluations": 12, "size": 100},
    "short history": {"lbfgs": {"history_size": 3}},
    "bf16": {"precision": "bf16"},
}


class StopError(Exception):
    pass


def settle(weights_file: Path, every: float = 0, **settings: Any) -> None:
    """Writes params.yaml: the experiment ``first`` with some settings."""
    params: Any = tiny_params(weights_file)
    params["defaults"] |= {"evaluations": EVALUATIONS, "intermediates": [1, 7, 14]}
    params["experiments"]["first"].update(settings)
    params["checkpoints"] = {"every": every}
    write_params(Path(), params)


def run_stopped_at(monkeypatch: pytest.MonkeyPatch, evaluation: int) -> None:
    """Runs the experiment until it ends in the middle of things, after so many evaluations."""

    def stop(self: ProgressBar, trainer: Any, module: StyleTransfer, *_: Any) -> None:
        if module.run.evaluations >= evaluation:
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "on_train_batch_end", stop)
        with pytest.raises(StopError):
            stylize("first")


def kept() -> list[str]:
    return sorted(file.name for file in Path("data/checkpoints").glob("*.pt"))


@pytest.mark.parametrize("evaluation", [3, 14])
@pytest.mark.parametrize("kind", KINDS)
def test_stopped_run_goes_on_to_the_same_bits(
    kind: str,
    evaluation: int,
    prepared: Path,
    weights_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settle(weights_file, **KINDS[kind])
    stylize("first")
    expected = outputs("first")
    run_stopped_at(monkeypatch, evaluation)
    assert 1 <= len(kept()) <= 2
    capsys.readouterr()
    for file in expected:  # as DVC does before it runs a cell
        (paths.EXPERIMENTS / "first" / file).unlink(missing_ok=True)
    stylize("first")
    assert "first: goes on after evaluation" in capsys.readouterr().out
    assert outputs("first") == expected
    assert kept() == []


def test_run_stopped_twice_and_in_its_second_stage_goes_on(
    prepared: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(weights_file, **KINDS["warm start"])
    stylize("first")
    expected = outputs("first")
    for evaluation in (4, 15):
        run_stopped_at(monkeypatch, evaluation)
    stylize("first")
    assert outputs("first") == expected


def test_switch_to_float32_is_remembered(
    prepared: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.transfer.callbacks.Refinement.EVALUATIONS", 5)
    monkeypatch.setattr("pipeline.transfer.callbacks.Refinement.GAIN", 0.9)
    settle(weights_file, precision="bf16")
    stylize("first")
    expected = outputs("first")
    assert b'"float32_evaluations": 1' in expected["metrics.json"]
    run_stopped_at(monkeypatch, 12)
    stylize("first")
    assert outputs("first") == expected


def test_changed_settings_begin_anew(
    prepared: Path,
    weights_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settle(weights_file)
    run_stopped_at(monkeypatch, 9)
    settle(weights_file, content_weight=0.9)
    stylize("first")
    assert "goes on" not in capsys.readouterr().out
    assert [row["evaluation"] for row in history("first")] == list(range(1, EVALUATIONS + 1))


def test_damaged_checkpoint_gives_way_to_the_one_before(
    prepared: Path,
    weights_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settle(weights_file)
    stylize("first")
    expected = outputs("first")
    run_stopped_at(monkeypatch, 9)
    newest = Path("data/checkpoints") / kept()[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    stylize("first")
    said = capsys.readouterr().out
    assert f"{newest.resolve()} is damaged" in said
    assert "goes on after evaluation" in said
    assert outputs("first") == expected


def test_full_disk_costs_the_checkpoint_and_not_the_run(
    prepared: Path,
    weights_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settle(weights_file)
    stylize("first")
    expected = outputs("first")

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("pipeline.records.checkpoints.torch.save", full)
    stylize("first")
    assert "no checkpoint could be written (No space left on device)" in capsys.readouterr().out
    assert outputs("first") == expected


def test_checkpoints_that_take_long_are_made_less_often(
    prepared: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clockwork: a step takes 0.1 s, a checkpoint 0.0123 s, so 2.46 s lie between two."""
    clock, saved = [0.0], list[int]()

    def save(self: Checkpoints, state: Any, evaluations: int, files: Any) -> None:
        clock[0] += 0.0123
        saved.append(evaluations)

    honest = StyleTransfer.training_step

    def step(self: StyleTransfer, *arguments: Any) -> Any:
        clock[0] += 0.1
        return honest(self, *arguments)

    settle(weights_file, every=0.35, evaluations=65)
    monkeypatch.setattr("pipeline.transfer.checkpointing.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(Checkpoints, "save", save)
    monkeypatch.setattr(StyleTransfer, "training_step", step)
    stylize("first")
    assert saved == [4, 29, 54]


def test_run_that_goes_on_is_whole_in_wandb(
    prepared: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(weights_file, **KINDS["warm start"])
    run_stopped_at(monkeypatch, 14)
    shutil.rmtree("wandb")
    stylize("first")
    assert_whole_in_wandb(prepared)


def assert_whole_in_wandb(folder: Path) -> None:
    rows = [json.dumps(record) for record in inspected(folder) if "history" in record]
    assert sum("warm_start/total" in row for row in rows) == 12
    assert sum('"total"' in row for row in rows) == EVALUATIONS
    assert len(list(folder.glob("wandb/*run-*/files/media/images/intermediate_*.png"))) == 3


def test_run_stopped_at_the_end_of_its_search_is_whole_in_wandb(
    prepared: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(weights_file, **KINDS["warm start"])

    def stop(*_: Any) -> None:
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.experiments.run._write_results", stop)
        with pytest.raises(StopError):
            stylize("first")
    shutil.rmtree("wandb")
    stylize("first")
    assert_whole_in_wandb(prepared)


@pytest.mark.parametrize(
    ("days", "left"),
    [(0, "changed part other own"), (2, "other own"), (40, "own")],
)
def test_checkpoints_that_were_left_behind_are_removed(
    days: float, left: str, workspace: Path
) -> None:
    folder = Path("data/checkpoints")
    files = {
        "own": f"first-{16 * 'a'}-0000005.pt",
        "changed": f"first-{16 * 'b'}-0000005.pt",
        "part": f".first-{16 * 'b'}-0000007.pt.12.part",
        "other": f"first-2-{16 * 'a'}-0000005.pt",
    }
    folder.mkdir(parents=True)
    for name in files.values():
        (folder / name).touch()
        os.utime(folder / name, 2 * (time.time() - days * 86_400,))
    Checkpoints("first", 16 * "a").remove_old_ones_of_others()
    found = {file.name for file in folder.iterdir()}
    assert {kind for kind, name in files.items() if name in found} == set(left.split())


def test_finished_run_leaves_no_checkpoint_half_written(workspace: Path) -> None:
    checkpoints = Checkpoints("first", 16 * "a")
    checkpoints.save({"x": 1}, 5, {})
    Path(f"data/checkpoints/.first-{16 * 'a'}-0000007.pt.12.part").touch()
    checkpoints.remove()
    assert not list(Path("data/checkpoints").iterdir())


def test_checkpoints_after_damaged_ones_are_kept(workspace: Path) -> None:
    checkpoints = Checkpoints("first", 16 * "a")
    for evaluations in (390, 400):
        checkpoints.save({"x": evaluations}, evaluations, {})
    for file in Path("data/checkpoints").iterdir():
        file.write_bytes(b"damaged")
    assert checkpoints.load() is None
    for evaluations in (10, 20):
        checkpoints.save({"x": evaluations}, evaluations, {})
        loaded = checkpoints.load()
        assert loaded is not None
        assert loaded.state == {"x": evaluations}


def test_checkpoints_of_one_run_are_not_those_of_another(tmp_path: Path, workspace: Path) -> None:
    Checkpoints("first", "a" * 16).save({"x": 1}, 5, {})
    assert Checkpoints("first", "b" * 16).load() is None
    assert Checkpoints("firs", "t" * 16).load() is None
    loaded = Checkpoints("first", "a" * 16).load()
    assert loaded is not None
    assert loaded.state == {"x": 1}


def test_second_process_at_one_experiment_says_so(workspace: Path) -> None:
    with (
        sole_run("first"),
        pytest.raises(UserError, match=f"is being run by process {os.getpid()}. Wait for it"),
        sole_run("first"),
    ):
        pass
    with sole_run("first"):
        pass


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_killed_process_leaves_what_it_takes_to_go_on(
    number: signal.Signals, status: int, prepared: Path, weights_file: Path
) -> None:
    """SIGKILL finds the checkpoint of before; the other two write one, whatever the interval."""
    settle(weights_file, evaluations=300)
    stylize("first")
    expected = outputs("first")
    settle(weights_file, every=0 if number == signal.SIGKILL else 1000, evaluations=300)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.stages.stylize", "first"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "WANDB_MODE": "disabled"},
    )
    record = paths.EXPERIMENTS / "first/history.csv"
    record.unlink()
    while process.poll() is None and not (record.exists() and record.read_text().count("\n") > 30):
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=60) == status
    assert not (paths.EXPERIMENTS / "first/image.png").exists()
    assert kept()
    finished = subprocess.run(
        [sys.executable, "-m", "pipeline.stages.stylize", "first"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "WANDB_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "goes on after evaluation" in finished.stdout
    assert outputs("first") == expected
