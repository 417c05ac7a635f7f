"""Disks that are full or read-only, and files removed during a run: an error, nothing lost."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, tiny_params, write_params
from test_stylize import outputs

from pipeline import paths
from pipeline.errors import UserError, explaining_the_disk
from pipeline.records.checkpoints import Checkpoints
from pipeline.records.status import read_failure
from pipeline.stages.stylize import stylize
from pipeline.transfer.callbacks import History, Progress
from pipeline.transfer.module import StyleTransfer

EVALUATIONS = 24
FOLDER = paths.EXPERIMENTS / "first"


@pytest.fixture
def expected(prepared: Path, weights_file: Path) -> dict[str, bytes]:
    """What the experiment ``first`` leaves when nothing happens to it."""
    params: Any = tiny_params(weights_file)
    params["defaults"] |= {"evaluations": EVALUATIONS, "intermediates": [2, 15]}
    params["checkpoints"] = {"every": 0}
    write_params(prepared, params)
    stylize("first")
    files = outputs("first")
    shutil.rmtree(FOLDER)  # as DVC does before it runs a cell
    return files


def check_that_it_continues(capsys: pytest.CaptureFixture[str], expected: dict[str, bytes]) -> None:
    capsys.readouterr()
    stylize("first")
    assert "first: goes on after evaluation" in capsys.readouterr().out
    assert outputs("first") == expected
    assert read_failure("first") == ""


def at_evaluation(monkeypatch: pytest.MonkeyPatch, number: int, happening: Any) -> None:
    """Has something happen once, in the middle of the run."""
    honest = Progress.on_train_batch_end

    def happen(self: Progress, trainer: Any, module: StyleTransfer, *rest: Any) -> None:
        honest(self, trainer, module, *rest)
        if module.run.evaluations == number:
            happening()

    monkeypatch.setattr(Progress, "on_train_batch_end", happen)


@contextmanager
def a_disk_with_room_for(size: int) -> Iterator[None]:
    """Has the system refuse to write more bytes than this into any file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    "removed",
    [FOLDER, FOLDER / "history.csv", FOLDER / "intermediates"],
    ids=lambda path: path.name,
)
def test_run_whose_outputs_are_removed_fails_and_continues_later(
    removed: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def remove() -> None:
        shutil.rmtree(removed) if removed.is_dir() else removed.unlink()

    with monkeypatch.context() as patch:
        at_evaluation(patch, 12, remove)
        with pytest.raises(UserError, match=r"it is not there, or its folder. If it was removed"):
            stylize("first")
    assert "it is not there" in read_failure("first")
    check_that_it_continues(capsys, expected)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("file", ["image.png", "metrics.json", "00015.png"])
def test_run_whose_output_cannot_be_written_fails_and_continues_later(
    file: str,
    number: int,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    honest = os.replace

    def refuse(source: Path, target: Path) -> None:
        if target.name == file:
            raise OSError(number, os.strerror(number), str(target))
        honest(source, target)

    what = "the disk is full" if number in (errno.ENOSPC, errno.EDQUOT) else "may not be"
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.files.os.replace", refuse)
        with pytest.raises(UserError, match=rf"{file}: .*{what}"):
            stylize("first")
    assert not (FOLDER / file).exists()
    assert not list(FOLDER.rglob("*.part"))
    check_that_it_continues(capsys, expected)


def test_history_on_a_full_disk_is_named(
    expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files is a disk that is full as soon as the history is this long."""
    honest = History.flush

    def full(self: History, *arguments: Any) -> None:
        with a_disk_with_room_for(len(expected["history.csv"]) // 2):
            honest(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(History, "flush", full)
        with pytest.raises(OSError, match=r"File too large: '.*first/history.csv'"):
            stylize("first")
    stylize("first")
    assert outputs("first") == expected


@pytest.mark.parametrize("room", [0, 100, 5_000, 40_000])
def test_full_disk_prevents_the_checkpoint_but_not_the_run(
    room: int,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    honest = Checkpoints.save

    def full(self: Checkpoints, *arguments: Any) -> None:
        with a_disk_with_room_for(room):
            honest(self, *arguments)

    monkeypatch.setattr(Checkpoints, "save", full)
    stylize("first")
    said = capsys.readouterr().out
    assert re.search(
        r"/data/checkpoints/first-[0-9a-f]{16}-0000001.pt: no checkpoint could be written "
        r"\(File too large\). The run goes on without\n",
        said,
    )
    assert "enforce" not in said
    assert outputs("first") == expected
    assert not list(Path("data/checkpoints").iterdir())


def test_continuing_on_a_full_disk_fails_and_works_later(
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        at_evaluation(patch, 12, interrupt)
        with pytest.raises(SystemExit):
            stylize("first")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        patch.setattr(Path, "write_text", full)  # nor is there room to record the failure
        with pytest.raises(UserError, match=r"first/history.csv: the disk is full. Make room"):
            stylize("first")
    check_that_it_continues(capsys, expected)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_the_right_to_write(expected: dict[str, bytes]) -> None:
    FOLDER.mkdir()
    FOLDER.chmod(0o500)
    with pytest.raises(UserError, match="this may not be read or written here"):
        stylize("first")
    FOLDER.chmod(0o700)
    stylize("first")
    assert outputs("first") == expected


def test_every_stage_explains_errors_of_the_disk(workspace: Path) -> None:
    """A file stands where the folder of a stage is to be."""
    Path("data").write_text("not a folder")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.stages.fetch", "first"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: data")
    assert "Traceback" not in done.stderr


def test_other_errors_are_not_explained_as_errors_of_the_disk() -> None:
    with pytest.raises(ConnectionError), explaining_the_disk():
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
