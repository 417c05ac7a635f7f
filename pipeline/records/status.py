"""Why experiments failed, and where their W&B runs are; kept outside DVC's outputs.

DVC removes outputs before an experiment runs. A W&B run has another identity each time.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypedDict

from pipeline import paths
from pipeline.errors import UserError, masked
from pipeline.files import sha256, write_json, write_text


class RunLocation(TypedDict, total=False):
    """A W&B run's page, and the command that uploads it from the repository; {} if disabled."""

    url: str
    sync: str


@contextmanager
def recording_failure(experiment: str) -> Iterator[None]:
    """Records the exception with which the block ends, after removing an earlier record."""
    _failure_file(experiment).unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, UserError):
            reason = str(error)
        elif isinstance(error, (SystemExit, KeyboardInterrupt)):
            reason = "It was interrupted."
        record_failure(experiment, reason)
        raise


def record_failure(experiment: str, reason: str) -> None:
    """Records why an experiment failed, or cannot be run."""
    with suppress(OSError):  # on a full disk; the error itself is reported anyway
        write_text(_failure_file(experiment), masked(reason))


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
    location: RunLocation = json.loads(file.read_bytes()) if file.is_file() else {}
    return location


def _failure_file(experiment: str) -> Path:
    return Path("data/status") / f"{experiment}.txt"


def _run_file(image: Path) -> Path:
    return paths.shared_root() / "data" / "status" / "runs" / f"{sha256(image)}.json"
