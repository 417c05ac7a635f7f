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
import torch
from conftest import REPOSITORY, tiny_params, write_params
from test_stylize import history, outputs
from test_tracking import inspected

from pipeline import paths
from pipeline.config.plan import read_plan
from pipeline.errors import UserError
from pipeline.losses.objective import Objective
from pipeline.records.checkpoints import Checkpoints, sole_run
from pipeline.records.identity import identify
from pipeline.stages.stylize import stylize
from pipeline.transfer.callbacks import Progress, Refinement
from pipeline.transfer.convergence import Convergence, StopReason
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


def write_settings(weights_file: Path, every: float = 0, **settings: Any) -> None:
    """Writes params.yaml: the experiment ``first`` with some settings."""
    params: Any = tiny_params(weights_file)
    params["defaults"] |= {"evaluations": EVALUATIONS, "intermediates": [1, 7, 14]}
    params["experiments"]["first"].update(settings)
    params["checkpoints"] = {"every": every}
    write_params(Path(), params)


def run_stopped_at(monkeypatch: pytest.MonkeyPatch, evaluation: int) -> None:
    """Runs the experiment until it ends in the middle of things, after so many evaluations."""

    def stop(self: Progress, trainer: Any, module: StyleTransfer, *_: Any) -> None:
        if module.run.evaluations >= evaluation:
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_train_batch_end", stop)
        with pytest.raises(StopError):
            stylize("first")


def checkpoint_files() -> list[str]:
    return sorted(file.name for file in Path("data/checkpoints").glob("*.pt"))


@pytest.mark.parametrize("evaluation", [3, 14])
@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_run_continues_to_the_same_bits(
    kind: str,
    evaluation: int,
    prepared: Path,
    weights_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_settings(weights_file, **KINDS[kind])
    stylize("first")
    expected = outputs("first")
    run_stopped_at(monkeypatch, evaluation)
    assert 1 <= len(checkpoint_files()) <= 2
    capsys.readouterr()
    for file in expected:  # as DVC does before it runs a cell
        (paths.EXPERIMENTS / "first" / file).unlink(missing_ok=True)
    stylize("first")
    assert "first: goes on after evaluation" in capsys.readouterr().out
    assert outputs("first") == expected
    assert checkpoint_files() == []


def test_run_interrupted_twice_and_in_its_second_phase_continues(
    prepared: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_settings(weights_file, **KINDS["warm start"])
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
    write_settings(weights_file, precision="bf16")
    stylize("first")
    expected = outputs("first")
    assert b'"float32_evaluations": 1' in expected["metrics.json"]
    run_stopped_at(monkeypatch, 12)
    stylize("first")
    assert outputs("first") == expected


def test_run_with_changed_settings_begins_anew(
    prepared: Path,
    weights_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_settings(weights_file)
    run_stopped_at(monkeypatch, 9)
    write_settings(weights_file, content_weight=0.9)
    stylize("first")
    assert "goes on" not in capsys.readouterr().out
    assert [row["evaluation"] for row in history("first")] == list(range(1, EVALUATIONS + 1))


def test_previous_checkpoint_is_used_if_the_newest_is_damaged(
    prepared: Path,
    weights_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_settings(weights_file)
    stylize("first")
    expected = outputs("first")
    run_stopped_at(monkeypatch, 9)
    newest = Path("data/checkpoints") / checkpoint_files()[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    stylize("first")
    said = capsys.readouterr().out
    assert f"{newest.resolve()} is damaged" in said
    assert "goes on after evaluation" in said
    assert outputs("first") == expected


def test_full_disk_prevents_the_checkpoint_but_not_the_run(
    prepared: Path,
    weights_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_settings(weights_file)
    stylize("first")
    expected = outputs("first")

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("pipeline.records.checkpoints.torch.save", full)
    stylize("first")
    assert "no checkpoint could be written (No space left on device)" in capsys.readouterr().out
    assert outputs("first") == expected


def test_slow_checkpoints_are_written_less_often(
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

    write_settings(weights_file, every=0.35, evaluations=65)
    monkeypatch.setattr("pipeline.transfer.checkpointing.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(Checkpoints, "save", save)
    monkeypatch.setattr(StyleTransfer, "training_step", step)
    stylize("first")
    assert saved == [4, 29, 54]


def test_continued_run_is_complete_in_wandb(
    prepared: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_settings(weights_file, **KINDS["warm start"])
    run_stopped_at(monkeypatch, 14)
    shutil.rmtree("wandb")
    stylize("first")
    assert_complete_in_wandb(prepared)


def assert_complete_in_wandb(folder: Path) -> None:
    rows = [json.dumps(record) for record in inspected(folder) if "history" in record]
    assert sum("warm_start/total" in row for row in rows) == 12
    assert sum('"total"' in row for row in rows) == EVALUATIONS
    assert len(list(folder.glob("wandb/*run-*/files/media/images/intermediate_*.png"))) == 3


def test_run_interrupted_after_its_last_step_is_complete_in_wandb(
    prepared: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_settings(weights_file, **KINDS["warm start"])

    def stop(*_: Any) -> None:
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.experiments.run._write_results", stop)
        with pytest.raises(StopError):
            stylize("first")
    shutil.rmtree("wandb")
    stylize("first")
    assert_complete_in_wandb(prepared)


@pytest.mark.parametrize(
    ("days", "left"),
    [(0, "changed part other own"), (2, "other own"), (40, "own")],
)
def test_old_checkpoints_of_other_runs_are_removed(days: float, left: str, workspace: Path) -> None:
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
    left_over = {file.name for file in folder.iterdir()}
    assert {kind for kind, name in files.items() if name in left_over} == set(left.split())


def test_finished_run_leaves_no_partly_written_checkpoint(workspace: Path) -> None:
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


def test_run_never_loads_the_checkpoint_of_another(tmp_path: Path, workspace: Path) -> None:
    Checkpoints("first", "a" * 16).save({"x": 1}, 5, {})
    assert Checkpoints("first", "b" * 16).load() is None
    assert Checkpoints("firs", "t" * 16).load() is None
    loaded = Checkpoints("first", "a" * 16).load()
    assert loaded is not None
    assert loaded.state == {"x": 1}


def test_second_process_that_runs_an_experiment_is_refused(workspace: Path) -> None:
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
def test_killed_process_leaves_a_checkpoint_to_continue_from(
    number: signal.Signals, status: int, prepared: Path, weights_file: Path
) -> None:
    """SIGKILL finds the checkpoint of before; the other two write one, whatever the interval."""
    write_settings(weights_file, evaluations=300)
    stylize("first")
    expected = outputs("first")
    write_settings(weights_file, every=0 if number == signal.SIGKILL else 1000, evaluations=300)
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
    assert checkpoint_files()
    finished = subprocess.run(
        [sys.executable, "-m", "pipeline.stages.stylize", "first"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "WANDB_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "goes on after evaluation" in finished.stdout
    assert outputs("first") == expected


def test_callbacks_load_the_state_that_they_saved(workspace: Path, images: Any) -> None:
    def callbacks() -> tuple[Convergence, Refinement]:
        return Convergence(60), Refinement(Objective)  # type: ignore[arg-type]

    convergence, refinement = callbacks()
    convergence.observe([{"evaluation": 1, "iteration": 0, "total": 2.0}])
    convergence.stop_reason = StopReason("early stop", "the loss was 2")
    convergence.best_image = images[0]
    refinement.evaluations, refinement.total = 25, 2.0
    states = {each.state_key: each.state_dict() for each in (convergence, refinement)}
    Checkpoints("first", "a" * 16).save({"callbacks": states}, 1, {})
    checkpoint = Checkpoints("first", "a" * 16).load()
    assert checkpoint is not None
    others = callbacks()
    for other in others:
        assert str(other.state_dict()) != str(states[other.state_key])
        other.load_state_dict(checkpoint.state["callbacks"][other.state_key])
        assert str(other.state_dict()) == str(states[other.state_key])
    assert others[0].stop_reason == convergence.stop_reason


def test_run_is_another_if_its_network_or_threads_change(prepared: Path) -> None:
    plan = read_plan("first")
    prefixes = [identify(plan).checkpoints.prefix]
    assert identify(read_plan("first")).checkpoints.prefix == prefixes[0]
    torch.set_num_threads(torch.get_num_threads() + 1)
    prefixes.append(identify(plan).checkpoints.prefix)
    content = paths.WEIGHTS_FILE.read_bytes()
    paths.WEIGHTS_FILE.unlink()
    paths.WEIGHTS_FILE.write_bytes(content[:-1])
    prefixes.append(identify(plan).checkpoints.prefix)
    assert len(set(prefixes)) == 3
