"""Files of checkpoints, from which an interrupted run continues to the same bits.

They are not outputs of DVC, which removes the outputs of an experiment before it runs. Their names
hold a hash of everything that decides the result, so that a changed experiment begins anew.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline import paths
from pipeline.errors import UserError
from pipeline.files import naming, replacing

MAX_AGE_CHANGED, MAX_AGE_OTHERS = 86_400.0, 30 * 86_400.0
"""Seconds for which the checkpoints of a changed experiment, and of other experiments, are kept."""
KEPT = 2
"""How many checkpoints of a run are kept: the newest, and one more in case it is damaged."""


class Checkpoint(NamedTuple):
    """A checkpoint: nested tensors and plain values, and {file of the run: its content}."""

    state: dict[str, Any]
    files: dict[str, bytes]


class Checkpoints:
    """The checkpoints of one run; those with another key (16 hexadecimal digits) are not read."""

    def __init__(self, experiment: str, key: str) -> None:
        self.experiment, self.prefix = experiment, f"{experiment}-{key}-"
        self.folder = paths.shared_root() / "data" / "checkpoints"

    def save(self, state: Mapping[str, Any], evaluations: int, files: Mapping[str, Path]) -> None:
        """Writes a checkpoint after so many evaluations, atomically, and removes older ones."""
        contents = {n: torch.from_numpy(np.fromfile(f, np.uint8)) for n, f in files.items()}
        with replacing(self.folder / f"{self.prefix}{evaluations:07d}.pt") as temporary:
            torch.save({"state": dict(state), "files": contents}, temporary)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        for old in self._newest_first()[KEPT:]:
            old.unlink(missing_ok=True)

    def load(self) -> Checkpoint | None:
        """Returns the newest checkpoint that can be read, or None."""
        for file in self._newest_first():
            try:
                saved = torch.load(file, map_location="cpu", weights_only=True)
                files = {name: data.numpy().tobytes() for name, data in saved["files"].items()}
                return Checkpoint(saved["state"], files)
            except Exception as error:  # noqa: BLE001 - damaged bytes raise any of them
                reason = str(error).partition("\n")[0] or type(error).__name__
                print(f"{file} is damaged ({reason}): an earlier one is taken, if there is one")
        return None

    def remove(self) -> None:
        """Removes all checkpoints of the run, half-written ones of a killed process included."""
        for file in [*self._newest_first(), *self.folder.glob(f".{self.prefix}*.part")]:
            file.unlink(missing_ok=True)

    def remove_old_ones_of_others(self) -> None:
        """Removes checkpoints of other runs that are older than ``MAX_AGE_…``."""
        for file in self.folder.glob("*"):
            name = re.fullmatch(r"\.?(.+)-[0-9a-f]{16}-\d{7}\.pt(\.\d+\.part)?", file.name)
            if name is None or file.name.startswith(self.prefix):
                continue
            max_age = MAX_AGE_CHANGED if name[1] == self.experiment else MAX_AGE_OTHERS
            with suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > max_age:
                    file.unlink()

    def _newest_first(self) -> list[Path]:
        """Sorted by time and not by name: a run that begins anew has few evaluations at first."""
        written: dict[Path, int] = {}
        for file in sorted(self.folder.glob(f"{self.prefix}*.pt"), reverse=True):
            with suppress(FileNotFoundError):
                written[file] = file.stat().st_mtime_ns
        return sorted(written, key=written.__getitem__, reverse=True)


@contextmanager
def sole_run(experiment: str) -> Iterator[None]:
    """Locks an experiment, so that no other process runs it at the same time.

    Raises:
        UserError: another process is running it.
    """
    # In the workspace and not in shared_root: a queued DVC experiment has outputs of its own.
    file = Path("data/status") / f"{experiment}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise UserError(
                f"experiment {experiment!r} is being run by process {lock.read() or 'unknown'}. "
                "Wait for it, or stop it"
            ) from error
        with naming(file):
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
        yield
