"""A disk that is full, read-only, or cleared under a run: a sentence, and nothing lost."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, tiny_params, write_params
from test_stylize import outputs

from pipeline import paths
from pipeline.errors import UserError, explaining_the_disk
from pipeline.records.status import read_failure
from pipeline.stages.stylize import stylize
from pipeline.transfer.callbacks import ProgressBar
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
    found = outputs("first")
    shutil.rmtree(FOLDER)  # as DVC does before it runs a cell
    return found


def goes_on(capsys: pytest.CaptureFixture[str], expected: dict[str, bytes]) -> None:
    capsys.readouterr()
    stylize("first")
    assert "first: goes on after evaluation" in capsys.readouterr().out
    assert outputs("first") == expected
    assert read_failure("first") == ""


def at_evaluation(monkeypatch: pytest.MonkeyPatch, number: int, happening: Any) -> None:
    """Has something happen once, in the middle of the run."""
    honest = ProgressBar.on_train_batch_end

    def happen(self: ProgressBar, trainer: Any, module: StyleTransfer, *rest: Any) -> None:
        honest(self, trainer, module, *rest)
        if module.run.evaluations == number:
            happening()

    monkeypatch.setattr(ProgressBar, "on_train_batch_end", happen)


@pytest.mark.parametrize(
    "removed",
    [FOLDER, FOLDER / "history.csv", FOLDER / "intermediates"],
    ids=lambda path: path.name,
)
def test_outputs_that_are_removed_under_a_run(
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
    goes_on(capsys, expected)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("file", ["image.png", "metrics.json", "00015.png"])
def test_output_that_cannot_be_written(
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
    goes_on(capsys, expected)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_record_on_a_full_disk(expected: dict[str, bytes]) -> None:
    FOLDER.mkdir()
    (FOLDER / "history.csv").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"first/history.csv: the disk is full. Make room and run"):
        stylize("first")
    (FOLDER / "history.csv").unlink()
    stylize("first")
    assert outputs("first") == expected


def test_files_of_a_checkpoint_on_a_full_disk(
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
    goes_on(capsys, expected)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_the_right_to_write(expected: dict[str, bytes]) -> None:
    FOLDER.mkdir()
    FOLDER.chmod(0o500)
    with pytest.raises(UserError, match="this may not be read or written here"):
        stylize("first")
    FOLDER.chmod(0o700)
    stylize("first")
    assert outputs("first") == expected


def test_every_stage_has_the_sentence(workspace: Path) -> None:
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


def test_what_is_not_of_the_disk_stays_what_it_is() -> None:
    with pytest.raises(ConnectionError), explaining_the_disk():
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
