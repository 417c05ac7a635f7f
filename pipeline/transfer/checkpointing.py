"""Saves checkpoints during a run, and restores a run from one."""

import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from pipeline.files import replacing
from pipeline.records.checkpoints import Checkpoints
from pipeline.transfer.callbacks import History, log_again, remove_intermediates
from pipeline.transfer.module import StyleTransfer

MAX_TIME_SHARE = 0.005
"""The share of a run's time that checkpoints may take."""


class Checkpointing(pl.Callback):
    """Saves a run at intervals, and before the process ends by SIGTERM or an interrupt.

    ``every`` is the least time between two checkpoints in seconds, and 0 saves after each step. The
    time is longer if a checkpoint takes long to write. The files of the run are in the folder of
    the history, which is flushed before each checkpoint.
    """

    def __init__(self, checkpoints: Checkpoints, every: float, history: History) -> None:
        self.checkpoints, self.every, self.history = checkpoints, every, history
        self.next_save = time.monotonic() + every
        self.interrupted = False
        self.previous_handler: Any = None

    def on_fit_start(self, trainer: pl.Trainer, module: StyleTransfer) -> None:
        """Makes an interrupt wait for the end of the step, where the run can be saved."""
        self.previous_handler = signal.signal(signal.SIGINT, self._note_interrupt)

    def _note_interrupt(self, *_: object) -> None:
        if self.interrupted:  # a second interrupt does not wait
            raise KeyboardInterrupt
        self.interrupted = True

    def on_train_batch_start(self, trainer: pl.Trainer, module: StyleTransfer, *_: Any) -> None:
        """Makes an evaluation in tiles, which may take minutes, end after a tile if asked to."""
        run, features = module.run, module.objective.features
        if not run.tile or features.group.size > 1:  # the others would wait for this process
            return
        counts = run.evaluations, run.float32_evaluations

        def watch(share: float) -> None:
            # Later evaluations of a line search have moved the image. An evaluation is counted
            # between its way forward and its way back.
            if run.evaluations != counts[0] + (share > 1 / 2):
                return
            if self.interrupted or trainer.received_sigterm:
                run.evaluations, run.float32_evaluations = counts
                self.save(trainer, module)
                self._raise_interrupt()
                raise SIGTERMException

        features.watchers["checkpointing"] = watch

    def on_train_batch_end(self, trainer: pl.Trainer, module: StyleTransfer, *_: Any) -> None:
        if self.interrupted or time.monotonic() >= self.next_save:
            self.save(trainer, module)
        self._raise_interrupt()

    def on_exception(
        self, trainer: pl.Trainer, module: StyleTransfer, error: BaseException
    ) -> None:
        # It is raised where the run can be saved: by Lightning between two steps, or by ``watch``.
        if isinstance(error, SIGTERMException):
            self.save(trainer, module)
        # Another exception must not hide that the process was asked to end.
        self.teardown(trainer, module, "fit")
        if trainer.received_sigterm and not isinstance(error, SIGTERMException):
            raise SIGTERMException

    def teardown(self, trainer: pl.Trainer, module: StyleTransfer, stage: str) -> None:
        if self.previous_handler is not None:
            signal.signal(signal.SIGINT, self.previous_handler)
        self._raise_interrupt()

    def _raise_interrupt(self) -> None:
        if self.interrupted:
            self.interrupted = False
            raise KeyboardInterrupt

    def save(self, trainer: pl.Trainer, module: StyleTransfer) -> None:
        """Writes a checkpoint between two steps, unless the run has diverged or the disk is full.

        Raises:
            FileNotFoundError: a file of the run is missing, so that it cannot be completed.
        """
        self.history.flush(trainer, module)
        if self.history.convergence.divergence:
            return  # the previous checkpoint leads to the same best image
        begin = time.monotonic()
        optimizers, callbacks = trainer.optimizers, trainer.callbacks  # type: ignore[attr-defined]
        state = {
            "run": vars(module.run),
            "module": module.state_dict(),
            "precision": module.precision,
            "optimizer": optimizers[0].state_dict() if optimizers else {},
            "callbacks": {each.state_key: each.state_dict() for each in callbacks},
        }
        files = {name: (self.history.folder / name).read_bytes() for name in module.run.files}
        try:
            self.checkpoints.save(state, module.run.total_evaluations, files)
        except (OSError, RuntimeError) as error:
            file = getattr(error, "filename", None) or self.checkpoints.folder
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            print(f"{file}: no checkpoint could be written ({reason}). The run goes on without")
        end = time.monotonic()
        pause = max(self.every, (end - begin) / MAX_TIME_SHARE) if self.every else 0.0
        self.next_save = end + pause


def load_state(
    checkpoints: Checkpoints, folder: Path, logger: Logger, notes: list[str]
) -> dict[str, Any] | None:
    """Returns the newest checkpoint's state, or None; restores its files and logs them again.

    Damaged checkpoints are noted in the state, or in ``notes`` if there is none.
    """
    checkpoint = checkpoints.load()
    if checkpoint is not None:
        notes = checkpoint.state["run"]["notes"]
    then = "began anew" if checkpoint is None else "went on from the one before"
    notes += [
        f"The checkpoint after evaluation {evaluations} was damaged: the run {then}"
        for evaluations in checkpoints.damaged[-1:]
    ]
    if checkpoint is None:
        return None
    checkpoint.state["run"]["files"] = list(checkpoint.files)
    remove_intermediates(folder)
    for name, content in checkpoint.files.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)
    log_again(logger, folder)
    return checkpoint.state


def best_image(state: dict[str, Any]) -> Tensor:
    """Returns the best image of the phase in which a state was saved, (1, 3, H, W) float32."""
    image: Tensor = state["callbacks"]["Convergence"]["best_image"]
    return image


def restore(state: dict[str, Any], module: StyleTransfer, callbacks: Iterable[pl.Callback]) -> None:
    """Loads a state into a module and its callbacks; takes out that of L-BFGS, which is large."""
    module.load_state_dict(state["module"])
    module.optimizer_state = state.pop("optimizer")
    for callback in callbacks:
        callback.load_state_dict(state["callbacks"][callback.state_key])
