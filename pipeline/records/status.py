"""Why experiments failed, and where their W&B runs are; kept outside DVC's outputs.

DVC removes the outputs of an experiment before it runs, so a failure cannot be recorded there. A
W&B run has another identity each time, although the outputs are the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypedDict

from pipeline import paths
from pipeline.errors import UserError
from pipeline.files import sha256, write_json, write_text

STATUS = Path("data/status")


class RunLocation(TypedDict, total=False):
    """Where a W&B run is; empty for a disabled run.

    Attributes:
        url: address of its page.
        sync: command that uploads it, to be run in the repository.
    """

    url: str
    sync: str


@contextmanager
def recording_failure(experiment: str) -> Iterator[None]:
    """Records the exception with which the block ends, after removing an earlier record."""
    _failure_file(experiment).unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        record_failure(experiment, _reason(error))
        raise


def record_failure(experiment: str, reason: str) -> None:
    """Records why an experiment failed, or cannot be run."""
    with suppress(OSError):  # on a full disk; the error itself is reported anyway
        write_text(_failure_file(experiment), reason)


def read_failure(experiment: str) -> str:
    """Returns why the latest run of an experiment failed, empty if it did not."""
    try:
        return _failure_file(experiment).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def record_run(image: Path, location: RunLocation) -> None:
    """Records which W&B run made a picture, where queued DVC experiments find it too."""
    write_json(_run_file(image), location)


def read_run(image: Path) -> RunLocation:
    """Returns where the W&B run is that made a picture; empty if that is not known."""
    file = _run_file(image)
    if not file.is_file():
        return {}
    location: RunLocation = json.loads(file.read_text(encoding="utf-8"))
    return location


def _failure_file(experiment: str) -> Path:
    return STATUS / f"{experiment}.txt"


def _run_file(image: Path) -> Path:
    return paths.shared_root() / STATUS / "runs" / f"{sha256(image)}.json"


def _reason(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        return "It was interrupted."
    return f"{type(error).__name__}: {error}"
