"""Keeps checkpoints of a run as it goes, and puts a run back to where one was made."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from pipeline.files import naming
from pipeline.records.checkpoints import Checkpoints
from pipeline.transfer.callbacks import History, Intermediates, Refinement
from pipeline.transfer.module import StyleTransfer

COST = 0.005
"""Part of a run's time that checkpoints may take."""


class Saving(pl.Callback):
    """Has a run saved before the process ends by SIGTERM or an interrupt."""

    def __init__(self) -> None:
        self.interrupted = False
        self.handler: Any = None

    def save(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Writes down what the run has come to, between two steps."""
        raise NotImplementedError

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """An interrupt waits for the end of the step: in its midst nothing can be kept."""
        self.handler = signal.signal(signal.SIGINT, self._interrupt)

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self._give_back()
        self._raise_interrupt()

    def _give_back(self) -> None:
        if self.handler is not None:
            signal.signal(signal.SIGINT, self.handler)

    def _raise_interrupt(self) -> None:
        if self.interrupted:
            self.interrupted = False
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:  # whoever asks twice does not want to wait
            raise KeyboardInterrupt
        self.interrupted = True

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if self.interrupted:
            self.save(trainer, module)
        self._raise_interrupt()

    def on_exception(
        self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException
    ) -> None:
        # Lightning raises it between two steps.
        if isinstance(exception, SIGTERMException):
            self.save(trainer, module)
        self._give_back()
        # What ends a step in another way must not hide that somebody wanted the end.
        self._raise_interrupt()
        if trainer.received_sigterm and not isinstance(exception, SIGTERMException):
            raise SIGTERMException


class Keeping(Saving):
    """Writes a checkpoint now and then, and before the process ends.

    Where writing one takes long, the next waits for longer than ``every``.

    Args:
        checkpoints: where to.
        every: seconds from one to the next, at least; 0 writes one after each step.
        start: the image that the stage began with.
        folder: of the run's files, which a checkpoint holds too.
        notes: what happened in the run, a sentence each.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        every: float,
        start: Tensor,
        folder: Path,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.checkpoints, self.every, self.start = checkpoints, every, start
        self.folder, self.notes = folder, notes
        self.last, self.wait = time.monotonic(), every

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if not self.interrupted and time.monotonic() - self.last >= self.wait:
            self.save(trainer, module)
        super().on_train_batch_end(trainer, module)

    def save(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Writes a checkpoint of the run as it is between two steps."""
        assert isinstance(module, StyleTransfer)
        history = _the(trainer, History)
        history.flush(trainer)
        if history.course.diverged:
            return  # from the one before it comes to the same, and has its best image
        begin = time.monotonic()
        optimizers = trainer.optimizers  # of a member of a batch it is a copy
        state = {
            "stage": history.stage,
            "before": history.before,
            "start": self.start,
            "pixels": module.pixels.detach().clone(),  # a view would bring all that it is of
            "optimizer": optimizers[0].state_dict() if optimizers else {},
            "counts": module.counts,
            "precision": module.objective.features.precision,
            "refinement": _the(trainer, Refinement).progress,
            "course": history.course.state(),
            "notes": list(self.notes),
        }
        files = {
            file.relative_to(self.folder).as_posix(): file
            for file in (history.path, *_the(trainer, Intermediates).written)
        }
        try:
            self.checkpoints.save(state, history.before + module.evaluations, files)
        except FileNotFoundError:  # of the run's files: it could not be finished
            raise
        except (OSError, RuntimeError) as error:  # a full disk, above all
            print(f"no checkpoint could be written ({error}): the run goes on without")
        self.last = time.monotonic()
        self.wait = max(self.every, (self.last - begin) / COST) if self.every else 0.0


def put_back(module: StyleTransfer, state: MutableMapping[str, Any]) -> None:
    """Gives a module its image, counts and curvature of a checkpoint; the latter when it is fit."""
    with torch.no_grad():
        module.pixels.copy_(state["pixels"])
    module.counts = state["counts"]
    module.optimizer_state = state.pop("optimizer")  # large, and of no use twice


def write_back(files: Mapping[str, bytes], folder: Path) -> None:
    """Writes a checkpoint's files where the run had written them, and no others beside them."""
    for other in folder.glob("intermediates/*.png"):
        other.unlink()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path):
            path.write_bytes(content)


def _the(trainer: pl.Trainer, kind: type[Any]) -> Any:
    return next(callback for callback in trainer.callbacks if isinstance(callback, kind))  # type: ignore[attr-defined]
