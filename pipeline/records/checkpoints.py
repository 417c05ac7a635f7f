"""What a run needs to go on to the same bits after it was stopped, outside DVC's outputs.

DVC removes a cell's outputs before it runs it. Checkpoints lie beside them, under the hash of
everything that decides the result: a change of that starts anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline import paths
from pipeline.errors import UserError
from pipeline.files import naming, replacing

DAY_S = 86_400.0
CHANGED_S, FORGOTTEN_S = DAY_S, 30 * DAY_S
"""Age in seconds at which checkpoints of a changed run are removed, and of other experiments."""
KEPT = 2
"""How many checkpoints of a run are kept: the newest, and one should that be damaged."""


def key_of(description: Mapping[str, Any]) -> str:
    """Returns the hash of what decides a result, 16 hexadecimal digits."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Kept(NamedTuple):
    """A checkpoint: tensors and plain values, and the content of the run's files by their names."""

    state: dict[str, Any]
    files: dict[str, bytes]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        experiment: its name.
        key: from ``key_of``; checkpoints with another are never read.
    """

    def __init__(self, experiment: str, key: str) -> None:
        self.experiment = experiment
        self.prefix = f"{experiment}-{key}-"

    def save(self, state: Mapping[str, Any], evaluations: int, files: Mapping[str, Path]) -> None:
        """Writes a checkpoint, atomically, and removes older ones.

        Args:
            state: tensors and plain values.
            evaluations: done so far, in all stages.
            files: what the run has written, by names that ``restore`` will look for.
        """
        contents = {name: _as_tensor(file.read_bytes()) for name, file in files.items()}
        with replacing(_folder() / f"{self.prefix}{evaluations:07d}.pt") as temporary:
            torch.save({"state": dict(state), "files": contents}, temporary)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        for old in self._newest_first()[KEPT:]:
            old.unlink(missing_ok=True)

    def exist(self) -> bool:
        """Returns whether there is one to go on from."""
        return bool(self._newest_first())

    def load(self) -> Kept | None:
        """Returns the newest checkpoint that can be read, None without one."""
        for file in self._newest_first():
            try:
                found = torch.load(file, map_location="cpu", weights_only=True)
                files = {name: _as_bytes(content) for name, content in found["files"].items()}
                return Kept(found["state"], files)
            except Exception as error:  # noqa: BLE001 - damaged bytes bring any of them
                reason = str(error).partition("\n")[0] or type(error).__name__
                print(f"{file} is damaged ({reason}): an earlier one is taken, if there is one")
        return None

    def remove(self) -> None:
        """Removes all of them, and what a kill left of one half written: the run is done."""
        for file in [*self._newest_first(), *_folder().glob(f".{self.prefix}*.part")]:
            file.unlink(missing_ok=True)

    def forget_others(self) -> None:
        """Removes what other runs left, once it is old; those of this run it never does."""
        for file in _folder().glob("*"):
            name = re.fullmatch(r"\.?(.+)-[0-9a-f]{16}-\d{7}\.pt(\.\d+\.part)?", file.name)
            if name is None or file.name.startswith(self.prefix):
                continue
            limit = CHANGED_S if name[1] == self.experiment else FORGOTTEN_S
            with suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > limit:
                    file.unlink()

    def _newest_first(self) -> list[Path]:
        """By when they were written: a run that begins anew has few evaluations at first."""
        written: dict[Path, int] = {}
        for file in sorted(_folder().glob(f"{self.prefix}*.pt"), reverse=True):
            with suppress(FileNotFoundError):
                written[file] = file.stat().st_mtime_ns
        return sorted(written, key=written.__getitem__, reverse=True)


@contextmanager
def sole_run(experiment: str) -> Iterator[None]:
    """Keeps every other process from running the experiment inside the block.

    Raises:
        UserError: another process is running it.
    """
    # In the workspace: a copy that DVC makes for a queued experiment has outputs of its own.
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


def _folder() -> Path:
    return paths.shared_root() / "data" / "checkpoints"


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0)


def _as_bytes(content: Tensor) -> bytes:
    return content.numpy().tobytes()
