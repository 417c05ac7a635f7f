"""Why experiments failed; kept outside DVC's outputs, which DVC removes before each run."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import UserError, masked
from pipeline.files import write_text


@contextmanager
def recording_failure(experiment: str) -> Iterator[None]:
    """Records the exception with which the block ends; a success removes the record."""
    record_failure(experiment, "It was killed, or it is running now.")
    try:
        yield
        _failure_file(experiment).unlink(missing_ok=True)
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


def _failure_file(experiment: str) -> Path:
    return Path("data/status") / f"{experiment}.txt"
