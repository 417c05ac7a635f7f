"""An interrupted run continues to the same bits, and a changed one begins anew."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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
from pipeline.records.checkpoints import Checkpoints, read_checked, write_checked
from pipeline.records.identity import identify
from pipeline.records.locks import sole_run
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
    assert b'"float32_evaluations": 1' in expected["status.json"]
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


def flip_a_bit(content: bytearray) -> None:
    content[len(content) * 2 // 3] ^= 1


def zero_a_sector(content: bytearray) -> None:
    """Of those after the middle, the first that is not all zeros already."""
    sectors = range(len(content) // 2, len(content), 512)
    start = next(each for each in sectors if any(content[each : each + 512]))
    content[start : start + 512] = bytes(len(content[start : start + 512]))


def cut_short(content: bytearray) -> None:
    del content[-1]


def empty(content: bytearray) -> None:
    content.clear()


def lose_the_hash(content: bytearray) -> None:
    content[:32] = bytes(32)


@pytest.mark.parametrize("left", [1, 0])
@pytest.mark.parametrize("damage", [flip_a_bit, zero_a_sector, cut_short, empty, lose_the_hash])
def test_damaged_checkpoint_is_noticed_and_noted(
    damage: Callable[[bytearray], None],
    left: int,
    prepared: Path,
    weights_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run goes on from the one before, or begins anew where none is ``left``."""
    write_settings(weights_file)
    stylize("first")
    expected = outputs("first")
    run_stopped_at(monkeypatch, 9)
    for name in checkpoint_files()[left:]:
        newest = Path("data/checkpoints") / name
        content = bytearray(newest.read_bytes())
        damage(content)
        newest.write_bytes(content)
    stylize("first")
    said = capsys.readouterr().out
    assert f"{newest.resolve()} is damaged" in said
    assert ("goes on after evaluation 7" in said) == left
    actual = outputs("first")
    then = "went on from the one before" if left else "began anew"
    note = f"The checkpoint after evaluation {8 if left else 7} was damaged: the run {then}"
    assert note in json.loads(actual.pop("status.json"))["notes"]
    expected.pop("status.json")
    assert actual == expected
    assert checkpoint_files() == []


def test_every_flipped_bit_is_noticed(workspace: Path) -> None:
    checkpoints = Checkpoints("first", 16 * "a")
    state = {"x": torch.arange(40.0), "y": [1, "two", None]}
    checkpoints.save(state, 5, {"history.csv": b"stage\n"})
    (file,) = Path("data/checkpoints").iterdir()
    honest = file.read_bytes()
    for index in range(len(honest)):
        damaged = bytearray(honest)
        damaged[index] ^= 1 << index % 8
        file.write_bytes(damaged)
        assert checkpoints.load() is None, index
        assert not file.exists()
    file.write_bytes(honest)
    assert checkpoints.load() is not None


def test_checkpoint_under_the_name_of_another_is_noticed(workspace: Path) -> None:
    checkpoints, others = (Checkpoints("first", 16 * key) for key in "ab")
    checkpoints.save({"x": 5}, 5, {})
    checkpoints.save({"x": 9}, 9, {})
    others.save({"x": 0}, 9, {})
    folder = Path("data/checkpoints")
    shutil.copyfile(
        folder / f"{others.prefix}0000009.pt", folder / f"{checkpoints.prefix}0000009.pt"
    )
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded.state == {"x": 5}


HOSTILE = [
    "../../x",
    "/x",
    "image.png",
    "../first/history.csv",
    "history.csv/../../x",
    "history.csv\n",
    "intermediates/../../x.png",
    "intermediates/1.png",
    "intermediates/00001.png/x",
    "intermediates/０0001.png",
    "",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_checkpoint_with_files_that_no_run_writes_is_not_taken(
    name: str, prepared: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_settings(weights_file)
    run_stopped_at(monkeypatch, 9)
    for file in map(Path("data/checkpoints").joinpath, checkpoint_files()):
        saved = read_checked(file)
        saved["files"][name] = torch.zeros(3, dtype=torch.uint8)
        saved["state"]["run"]["files"].append(name)
        write_checked(saved, file)
    before = {path for path in prepared.rglob("*") if not path.is_relative_to(prepared / "wandb")}
    stylize("first")
    after = {path for path in prepared.rglob("*") if not path.is_relative_to(prepared / "wandb")}
    assert {path.name for path in after - before} <= {
        "00014.png", "image.png", "metrics.json", "provenance.json", "status.json",
    }  # fmt: skip
    notes = json.loads((paths.EXPERIMENTS / "first/status.json").read_text())["notes"]
    assert notes == ["The checkpoint after evaluation 7 was damaged: the run began anew"]


def test_checkpoint_does_not_name_the_files_that_the_next_one_holds(
    prepared: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be read from anywhere, and be written back by the run after."""
    write_settings(weights_file)
    run_stopped_at(monkeypatch, 9)
    (prepared / "secret").write_text("secret")
    newest = Path("data/checkpoints") / checkpoint_files()[-1]
    saved = read_checked(newest)
    saved["state"]["run"]["files"].append("../../../secret")
    write_checked(saved, newest)
    run_stopped_at(monkeypatch, 12)
    saved = read_checked(Path("data/checkpoints") / checkpoint_files()[-1])
    assert set(saved["files"]) == {
        "history.csv",
        "intermediates/00001.png",
        "intermediates/00007.png",
    }


def test_checkpoint_that_runs_code_is_not_taken(workspace: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, ("hostile",)

    write_checked(
        {"state": Hostile(), "files": {}}, Path(f"data/checkpoints/a-{16 * 'a'}-0000005.pt")
    )
    assert Checkpoints("a", 16 * "a").load() is None
    assert not Path("hostile").exists()


@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize("place", ["", "intermediates", "history.csv", "intermediates/00001.png"])
def test_nothing_is_written_or_removed_through_a_symbolic_link(
    place: str,
    continued: bool,
    prepared: Path,
    weights_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_settings(weights_file)
    stylize("first")
    expected = outputs("first")
    if continued:
        run_stopped_at(monkeypatch, 9)
    target, link = prepared / "precious", paths.EXPERIMENTS / "first" / place
    shutil.move(link, target)
    link.symlink_to(target)
    files = [target] if target.is_file() else [*filter(Path.is_file, target.rglob("*"))]
    before = {file: file.read_bytes() for file in files}
    stylize("first")
    assert outputs("first") == expected
    assert {file: file.read_bytes() for file in files} == before
    assert not link.is_symlink()


def test_history_that_dvc_replaced_by_a_link_to_its_cache_is_not_written(
    prepared: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `dvc commit` and `dvc checkout` in another terminal do during a run."""
    write_settings(weights_file)
    record, cache = paths.EXPERIMENTS / "first/history.csv", prepared / "cache"

    def link(self: Progress, trainer: Any, module: StyleTransfer, *_: Any) -> None:
        if module.run.evaluations == 9:
            os.link(record, cache)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_train_batch_end", link)
        with pytest.raises(
            UserError, match=r"history.csv: it is not there.* \(the file was replaced"
        ):
            stylize("first")
    before = cache.read_bytes()
    stylize("first")
    assert cache.read_bytes() == before


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
    [(0, "changed lock part other own"), (2, "other own"), (40, "own")],
)
def test_old_checkpoints_of_other_runs_are_removed(days: float, left: str, workspace: Path) -> None:
    folder = Path("data/checkpoints")
    files = {
        "own": f"first-{16 * 'a'}-0000005.pt",
        "changed": f"first-{16 * 'b'}-0000005.pt",
        "part": f".first-{16 * 'b'}-0000007.pt.12.part",
        "other": f"first-2-{16 * 'a'}-0000005.pt",
        "lock": f"first-{16 * 'b'}-lock",
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


@pytest.mark.parametrize("years", [-30, 30])
def test_clock_that_is_set_back_or_forward_changes_no_order(years: int, workspace: Path) -> None:
    checkpoints = Checkpoints("first", 16 * "a")
    for evaluations in (10, 20, 30):
        checkpoints.save({"x": evaluations}, evaluations, {})
        time_of_it = time.time() + (years * 365 * 86_400 if evaluations < 30 else 0)
        for file in Path("data/checkpoints").glob(f"*{evaluations}.pt"):
            os.utime(file, 2 * (time_of_it,))
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded.state == {"x": 30}
    assert len(checkpoint_files()) == 2


@pytest.mark.parametrize("days", [-400, 400])
def test_checkpoints_of_a_run_that_goes_on_are_never_old(days: float, workspace: Path) -> None:
    """They look old after the clock was set forward, and newer than now after it was set back."""
    others = Checkpoints("second", 16 * "b")
    with others.reserved():
        others.save({"x": 1}, 5, {})
        for file in Path("data/checkpoints").iterdir():
            os.utime(file, 2 * (time.time() - days * 86_400,))
        Checkpoints("first", 16 * "a").remove_old_ones_of_others()
        assert others.load() is not None


def test_checkpoints_belong_to_the_process_that_computes(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same experiment may run in two workspaces, which share the folder of checkpoints."""
    checkpoints, others = (Checkpoints("first", 16 * "a") for _ in range(2))
    folder = Path("data/checkpoints")
    with checkpoints.reserved():
        checkpoints.save({"x": 5}, 5, {})
        part = folder / f".{checkpoints.prefix}0000006.pt.1.part"
        part.touch()
        before = set(folder.iterdir())
        with others.reserved():
            said = capsys.readouterr().out
            assert f"process {os.getpid()} computes the same elsewhere" in said
            assert others.load() is None
            others.save({"x": 7}, 7, {})
        assert set(folder.iterdir()) == before
    assert not list(folder.iterdir())


def test_lock_of_a_killed_run_is_free(workspace: Path) -> None:
    code = (
        "import os, signal; from pipeline.records.checkpoints import Checkpoints\n"
        "checkpoints = Checkpoints('first', 16 * 'a')\n"
        "with checkpoints.reserved():\n"
        "    checkpoints.save({'x': 5}, 5, {}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    checkpoints = Checkpoints("first", 16 * "a")
    with checkpoints.reserved():
        loaded = checkpoints.load()
        assert loaded is not None
        assert loaded.state == {"x": 5}
    assert not list(Path("data/checkpoints").iterdir())


def test_run_that_fails_keeps_its_checkpoints_and_no_lock(workspace: Path) -> None:
    checkpoints = Checkpoints("first", 16 * "a")
    checkpoints.save({"x": 5}, 5, {})
    with contextlib.suppress(StopError), checkpoints.reserved():
        raise StopError
    assert [file.name for file in Path("data/checkpoints").iterdir()] == checkpoint_files() != []


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


@pytest.mark.usefixtures("measured")
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
