"""Locks between processes, which end with the process that holds them."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import UserError


class HeldError(Exception):
    """Another process holds a lock; the message is its number, or "unknown"."""


@contextmanager
def hold(file: Path, wait: bool = False) -> Iterator[None]:
    """Holds a lock file until the block ends; the file stays and has this process's number.

    Raises:
        HeldError: another process holds it, and ``wait`` is false.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout as error:
        with suppress(FileNotFoundError):
            raise HeldError(file.read_text("utf-8") or "unknown") from error
        raise HeldError("unknown") from error
    try:
        with suppress(OSError):  # a full disk
            file.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        lock.release()


@contextmanager
def sole(file: Path, what: str) -> Iterator[None]:
    """Holds a lock file for what no two processes may run at the same time.

    Raises:
        UserError: another process is running it.
    """
    try:
        with hold(file):
            yield
    except HeldError as error:
        raise UserError(
            f"{what} is being run by process {error}. Wait for it, or stop it"
        ) from error


def sole_run(experiment: str) -> AbstractContextManager[None]:
    """Locks an experiment in this workspace, as ``sole`` does."""
    # Not in shared_root: a queued DVC experiment has outputs of its own.
    return sole(Path("data/status") / f"{experiment}.lock", f"experiment {experiment!r}")
