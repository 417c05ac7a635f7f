"""Files of checkpoints, from which an interrupted run continues to the same bits.

They are not outputs of DVC, which removes the outputs of an experiment before it runs. Their names
hold a hash of everything that decides the result, so that a changed experiment begins anew, and the
number of evaluations, which orders them whatever the clock says.
"""

import hashlib
import io
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline import paths
from pipeline.files import replacing
from pipeline.records.locks import HeldError, hold

MAX_AGE_CHANGED, MAX_AGE_OTHERS = 86_400.0, 30 * 86_400.0
"""Seconds for which the checkpoints of a changed experiment, and of other experiments, are kept."""
KEPT = 2
"""How many checkpoints of a run are kept: the newest, and one more in case it is damaged."""

_DIGEST_SIZE = hashlib.sha256().digest_size
_FILES_OF_A_RUN = re.compile(r"history\.csv|intermediates/[0-9]{5,}\.png")
_NAME = re.compile(r"\.?((.+)-[0-9a-f]{16}-)(?:([0-9]{7,})\.pt(?:\.[0-9]+\.part)?|lock)")


class Checkpoint(NamedTuple):
    """A checkpoint: nested tensors and plain values, and {file of the run: its content}."""

    state: dict[str, Any]
    files: dict[str, bytes]


class Checkpoints:
    """The checkpoints of one run; those with another key (16 hexadecimal digits) are not read.

    Attributes:
        damaged: the evaluations after which those were written that ``load`` could not read.
        usable: whether they are read and written, which is not so where another process does.
    """

    def __init__(self, experiment: str, key: str) -> None:
        self.experiment, self.prefix = experiment, f"{experiment}-{key}-"
        self.folder = paths.shared_root() / "data" / "checkpoints"
        self.damaged: list[int] = []
        self.usable = True

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Keeps them for this process, and removes them if the block succeeds.

        Where another process has them, as for the same experiment in the workspace of another
        queued DVC experiment, the block does without checkpoints.
        """
        lock = self.folder / f"{self.prefix}lock"
        with ExitStack() as stack:
            try:
                stack.enter_context(hold(lock))
                stack.callback(lock.unlink, missing_ok=True)  # before it is released
            except HeldError as holder:
                self.usable = False
                print(
                    f"{self.experiment}: process {holder} computes the same elsewhere and has the "
                    "checkpoints, so this run does without"
                )
            except OSError:  # nor can a checkpoint be written here, which ``save`` reports
                pass
            yield
            self.remove()

    def save(self, state: Mapping[str, Any], evaluations: int, files: Mapping[str, bytes]) -> None:
        """Writes a checkpoint after so many evaluations, atomically, and removes older ones."""
        if not self.usable:
            return
        contents = {
            name: torch.frombuffer(bytearray(content), dtype=torch.uint8)
            for name, content in files.items()
        }
        file = self.folder / f"{self.prefix}{evaluations:07d}.pt"
        write_checked({"state": dict(state), "files": contents}, file)
        for old in list(self._newest_first().values())[KEPT:]:
            old.unlink(missing_ok=True)

    def load(self) -> Checkpoint | None:
        """Returns the newest checkpoint that can be read, or None; removes damaged ones."""
        for evaluations, file in self._newest_first().items() if self.usable else ():
            try:
                saved = read_checked(file)
                if unknown := [n for n in saved["files"] if not _FILES_OF_A_RUN.fullmatch(n)]:
                    raise ValueError(f"no run writes {unknown[0]!r}")
                files = {name: data.numpy().tobytes() for name, data in saved["files"].items()}
                return Checkpoint(saved["state"], files)
            except Exception as error:  # noqa: BLE001 - damaged bytes raise any of them
                reason = str(error).partition("\n")[0] or type(error).__name__
                print(f"{file} is damaged ({reason}): an earlier one is taken, if there is one")
                self.damaged.append(evaluations)
                with suppress(OSError):
                    file.unlink()
        return None

    def remove(self) -> None:
        """Removes all checkpoints of the run, half-written ones of a killed process included."""
        if self.usable:
            parts = self.folder.glob(f".{self.prefix}*.part")
            for file in [*self._newest_first().values(), *parts]:
                file.unlink(missing_ok=True)

    def remove_old_ones_of_others(self) -> None:
        """Removes checkpoints of other runs that are older than ``MAX_AGE_…`` and not in use."""
        for file in self.folder.glob("*"):
            name = _NAME.fullmatch(file.name)
            if name is None or name[1] == self.prefix:
                continue
            max_age = MAX_AGE_CHANGED if name[2] == self.experiment else MAX_AGE_OTHERS
            with suppress(FileNotFoundError, HeldError):
                if time.time() - file.stat().st_mtime > max_age:
                    lock = self.folder / f"{name[1]}lock"
                    with hold(lock):  # a clock that was set wrong makes those of a run look old
                        file.unlink(missing_ok=True)
                        lock.unlink(missing_ok=True)

    def _newest_first(self) -> dict[int, Path]:
        """Returns {evaluations: file}, the most first."""
        files = {
            int(name[3]): file
            for file in self.folder.glob(f"{self.prefix}*.pt")
            if (name := _NAME.fullmatch(file.name)) and name[3]
        }
        return dict(sorted(files.items(), reverse=True))


def write_checked(content: Any, file: Path) -> None:
    """Writes tensors and plain values as torch does, after a hash of them, atomically."""
    with replacing(file) as temporary, temporary.open("w+b") as written:
        written.write(bytes(_DIGEST_SIZE))
        try:
            torch.save(content, written)
        except RuntimeError as error:  # torch hides the system's, such as that of a full disk
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        digest = _digest(written, file.name)
        written.seek(0)
        written.write(digest)
        written.flush()
        os.fsync(written.fileno())


def read_checked(file: Path) -> Any:
    """Reads what ``write_checked`` wrote; any exception means that it is damaged or misnamed."""
    with file.open("rb") as written:
        if written.read(_DIGEST_SIZE) != _digest(written, file.name):
            raise ValueError("its content does not have its hash")
        written.seek(_DIGEST_SIZE)
        return torch.load(written, map_location="cpu", weights_only=True)


def _digest(file: io.BufferedIOBase, name: str) -> bytes:
    """Returns the hash of a file's name and of its content after the place of the hash."""
    file.seek(_DIGEST_SIZE)
    return hashlib.file_digest(file, lambda: hashlib.sha256(name.encode())).digest()
