"""The records of failures and of W&B runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.records.status import (
    RunLocation,
    read_failure,
    read_run,
    record_run,
    recording_failure,
)


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UserError("the image did not move"), "the image did not move"),
        (SystemExit(143), "It was interrupted."),
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
        (OSError("no https://me:secret@host/"), "OSError: no https://…@host/"),
    ],
)
def test_failure_is_recorded_and_raised(error: BaseException, reason: str) -> None:
    with pytest.raises(type(error)), recording_failure("a"):
        raise error
    assert read_failure("a") == reason
    assert read_failure("b") == ""


def test_next_run_removes_the_record_of_a_failure() -> None:
    with pytest.raises(UserError), recording_failure("a"):
        raise UserError("no")
    with recording_failure("a"):
        pass
    assert read_failure("a") == ""


def test_run_is_found_by_its_picture_and_by_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    copy = tmp_path / "copy"
    copy.mkdir()
    image = tmp_path / "image.png"
    image.write_bytes(b"pixels")
    where: RunLocation = {"sync": "wandb sync wandb/offline-run-1"}
    monkeypatch.chdir(copy)
    record_run(image, where)
    monkeypatch.chdir(tmp_path)
    assert read_run(image) == where
    image.write_bytes(b"others")
    assert read_run(image) == {}
