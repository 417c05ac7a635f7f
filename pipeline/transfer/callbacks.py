"""What watches a run: its record, its intermediates, its budget, its precision.

Everything hangs on ``on_after_backward``, which Lightning calls once for each evaluation of the
objective, with the image that was evaluated and its gradient in place. A line search evaluates
more than once in a step; ``on_train_batch_end`` comes once, after the image has moved.
"""

from __future__ import annotations

import csv
import errno
import math
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger, WandbLogger

from pipeline.files import naming
from pipeline.imaging.picture_files import write_png
from pipeline.imaging.tensors import to_picture
from pipeline.losses.objective import Objective
from pipeline.records.tracking import logged_picture
from pipeline.runtime.summation import total
from pipeline.transfer.convergence import EVERY, Course
from pipeline.transfer.module import StyleTransfer


class Budget(pl.Callback):
    """Ends the run at the first step that has used ``evaluations`` evaluations.

    Without a line search that is the step at which ``max_steps`` ends the run anyway. A line search
    cannot be interrupted: its last step may go over by the evaluations it needs.
    """

    def __init__(self, evaluations: int) -> None:
        self.evaluations = evaluations

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if _transfer(module).evaluations >= self.evaluations:
            trainer.should_stop = True


class History(pl.Callback):
    """Writes every evaluation's losses to a CSV file, and sends them to the run's loggers.

    Columns: stage, evaluation (from 1, on through all stages), iteration (steps of the stage taken
    before it), the losses of ``Objective.named`` and ``gradient_norm``, the L2 norm of
    ∂total/∂image for RGB in [0, 1]. Values stay on the device until those of ``EVERY`` iterations
    are read at once.

    An evaluation with a number in it that is NaN or infinite has no row. Loggers get the losses of
    another stage than ``main`` under ``STAGE/``: they are another network's. ``extras`` maps an
    evaluation to what loggers, not the file, get beside its losses.

    Args:
        path: the file; begun anew at the first evaluation of the first stage.
        course: is told of every evaluation.
        stage: its name.
        before: evaluations of earlier stages.
    """

    def __init__(
        self,
        path: Path,
        course: Course,
        stage: str = "main",
        before: int = 0,
    ) -> None:
        self.path, self.course, self.stage, self.before = path, course, stage, before
        self.columns: list[str] = []
        self.extras: dict[int, dict[str, Any]] = {}
        self.pending: list[tuple[int, int, torch.Tensor]] = []

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        names = _transfer(module).objective.names
        self.columns = ["evaluation", "iteration", *names, "gradient_norm"]
        if self.before + _transfer(module).evaluations:
            return
        with naming(self.path), self.path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(["stage", *self.columns])

    def on_after_backward(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        transfer = _transfer(module)
        row = torch.stack([*transfer.losses.values(), total(transfer.gradient.square()).sqrt()])
        self.pending.append((self.before + transfer.evaluations, transfer.iterations, row))

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if _transfer(module).iterations % EVERY == 0:
            self.flush(trainer)

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.flush(trainer)

    def flush(self, trainer: pl.Trainer) -> None:
        """Writes and logs what is pending.

        Raises:
            FileNotFoundError: somebody removed the file.
        """
        if not self.pending:
            return
        rows = [
            dict(zip(self.columns, [evaluation, step, *values], strict=True))
            for (evaluation, step, _), values in zip(
                self.pending, torch.stack([row for *_, row in self.pending]).tolist(), strict=True
            )
        ]
        self.course.see(rows)
        rows = [row for row in rows if all(map(math.isfinite, row.values()))]
        with naming(self.path), self.path.open("r+", newline="", encoding="utf-8") as file:
            file.seek(0, os.SEEK_END)
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([self.stage, *map(_exact, row.values())] for row in rows)
        self.pending.clear()
        for row in rows:
            extras = self.extras.pop(row["evaluation"], {})
            for logger in trainer.loggers:
                logger.log_metrics({**_named(row, self.stage), **extras})


class Intermediates(pl.Callback):
    """Saves the image as it was evaluated at chosen evaluations, as ``00050.png`` …

    Args:
        folder: gets the pictures, and in the first stage loses those of an earlier run.
        at: evaluations, counted as the history counts them.
        history: gets the pictures too, for its loggers.

    Attributes:
        written: the files so far.
    """

    def __init__(self, folder: Path, at: Collection[int], history: History) -> None:
        self.folder, self.at, self.history = folder, frozenset(at), history
        self.written: list[Path] = []

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.written = sorted(self.folder.glob("*.png"))
        if self.history.before + _transfer(module).evaluations:
            return
        while self.written:
            self.written.pop().unlink()

    def on_after_backward(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        transfer = _transfer(module)
        evaluation = self.history.before + transfer.evaluations
        if evaluation not in self.at:
            return
        if not self.folder.is_dir():  # write_png would make it, and the run go on without the rest
            raise FileNotFoundError(errno.ENOENT, "the folder is gone", str(self.folder))
        picture, loss = to_picture(transfer.evaluated), float(transfer.losses["total"])
        text = {"Evaluation": str(evaluation), "Loss": f"{loss:.9g}"}
        file = _intermediate(self.folder, evaluation)
        write_png(picture, file, text)
        self.written.append(file)
        if any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
            self.history.extras[evaluation] = _shown(file, evaluation, loss)


class Refinement(pl.Callback):
    """Goes on in float32 where a lower precision brings the loss down no further.

    Rounded features make the loss rough: near a minimum L-BFGS meets the roughness and stalls,
    while the float32 loss has further to fall. The curvature found so far is kept.

    Args:
        exact: returns the objective in float32; called once, if at all.
        history: whose course then begins anew, since its losses no longer compare; None without.
        progress: evaluations and total loss at the latest look, to go on from a checkpoint.
    """

    EVALUATIONS, GAIN = 25, 0.001
    """It is time when so many evaluations take less than this part off the total loss."""

    def __init__(
        self,
        exact: Callable[[], Objective],
        history: History | None = None,
        progress: dict[str, float] | None = None,
    ) -> None:
        self.exact, self.history = exact, history
        self.progress = progress or {"evaluations": 0, "total": float("inf")}

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        transfer = _transfer(module)
        if transfer.objective.features.precision == "float32":
            return
        if transfer.evaluations - self.progress["evaluations"] < self.EVALUATIONS:
            return
        if self.history is not None:
            self.history.flush(trainer)
            if self.history.course.diverged:
                return  # which is no stalling
        total = float(transfer.losses["total"])
        if total > (1 - self.GAIN) * self.progress["total"]:
            transfer.objective = self.exact()
            if self.history is not None:
                self.history.course.restart()
            print(f"evaluation {transfer.evaluations}: {total:.4g}, on in float32 from here")
        self.progress = {"evaluations": transfer.evaluations, "total": total}


def log_again(logger: Logger, folder: Path) -> None:
    """Sends a logger what a run had before it was stopped: the record and the intermediates.

    Args:
        logger: new to the run.
        folder: of the run's files.
    """
    with (folder / "history.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            stage = row.pop("stage")
            values = _named({name: float(value) for name, value in row.items()}, stage)
            evaluation = int(row["evaluation"])
            picture = _intermediate(folder / "intermediates", evaluation)
            if picture.is_file() and isinstance(logger, WandbLogger):
                values |= _shown(picture, evaluation, float(row["total"]))
            logger.log_metrics(values)


def _intermediate(folder: Path, evaluation: int) -> Path:
    return folder / f"{evaluation:05d}.png"


def _shown(file: Path, evaluation: int, loss: float) -> dict[str, Any]:
    caption = f"evaluation {evaluation}, total loss {loss:.4g}"
    return {"intermediate": logged_picture(file, caption)}


def _transfer(module: pl.LightningModule) -> StyleTransfer:
    assert isinstance(module, StyleTransfer)
    return module


def _named(row: dict[str, Any], stage: str) -> dict[str, Any]:
    if stage == "main":
        return row
    kept = {"evaluation": row["evaluation"]}
    return kept | {f"{stage}/{name}": row[name] for name in row if name not in kept}


def _exact(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"
