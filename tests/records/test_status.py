"""The records of failures."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.records.status import read_failure, recording_failure


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


def test_run_that_is_killed_leaves_a_record() -> None:
    """Nothing of it runs after SIGKILL."""
    with recording_failure("a"):
        assert read_failure("a") == "It was killed, or it is running now."
    assert read_failure("a") == ""
