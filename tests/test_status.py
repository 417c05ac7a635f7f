"""What is left of a run that ended, however it ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.files import sha256
from pipeline.status import read_status, recorded


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_finished_run_is_bound_to_its_picture() -> None:
    image = Path("image.png")
    with recorded("a", image) as status:
        status["run"] = {"sync": "wandb sync wandb/offline-run-1"}
        image.write_bytes(b"pixels")
    assert read_status("a") == {"image": sha256(image), "run": status["run"]}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UserError("the image did not move"), "the image did not move"),
        (SystemExit(143), "it was interrupted"),
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
    ],
)
def test_failure_leaves_its_reason_and_goes_on(error: BaseException, reason: str) -> None:
    with pytest.raises(type(error)), recorded("a", Path("image.png")):
        raise error
    assert read_status("a") == {"failure": reason}


def test_next_run_replaces_the_failure() -> None:
    with pytest.raises(UserError), recorded("a", Path("image.png")):
        raise UserError("no")
    with recorded("a", Path("image.png")):
        Path("image.png").write_bytes(b"pixels")
    assert "failure" not in read_status("a")


def test_experiment_that_never_ran_has_none() -> None:
    assert read_status("never") == {}
