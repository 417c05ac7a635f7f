"""Lightning callbacks of a run: loss history, intermediate images, precision, progress bar.

Lightning calls ``on_after_backward`` once for each evaluation of the objective, with the evaluated
image and its gradient in place, and ``on_train_batch_end`` once for each step, after the image has
moved. A line search evaluates more than once in a step.
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
from pipeline.records.tracking import wandb_image
from pipeline.runtime.summation import total
from pipeline.transfer.convergence import CHECK_INTERVAL, Convergence
from pipeline.transfer.module import StyleTransfer

ReportProgress = Callable[[str, int, int, float], None]

HISTORY_FILE = "history.csv"


class History(pl.Callback):
    """Writes the losses of every evaluation to a CSV file, and sends them to the loggers.

    Columns: stage (the phase), evaluation (from 1, through all phases), iteration (steps of the
    phase before it), the losses of ``Objective.names``, and ``gradient_norm``, the L2 norm of
    ∂total/∂image for RGB in [0, 1]. The values stay on the device until those of
    ``CHECK_INTERVAL`` iterations are read at once.

    An evaluation with a NaN or infinite value has no row. Loggers get the losses of phases other
    than ``main`` as ``PHASE/NAME``, since they come from another network or size.

    Args:
        folder: gets ``history.csv``, which the first phase of a run begins anew.
        convergence: is passed every row.

    Attributes:
        extras: {evaluation: what the loggers get beside its losses}.
    """

    def __init__(self, folder: Path, convergence: Convergence) -> None:
        self.folder, self.convergence = folder, convergence
        self.path = folder / HISTORY_FILE
        self.extras: dict[int, dict[str, Any]] = {}
        self.columns: list[str] = []
        self.pending: list[tuple[int, int, torch.Tensor]] = []

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        transfer = _transfer(module)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.columns = ["evaluation", "iteration", *transfer.objective.names, "gradient_norm"]
        if transfer.run.total_evaluations:
            return
        transfer.run.files.append(HISTORY_FILE)
        with naming(self.path), self.path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(["stage", *self.columns])

    def on_after_backward(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        transfer = _transfer(module)
        row = torch.stack([*transfer.losses.values(), total(transfer.gradient.square()).sqrt()])
        self.pending.append((transfer.run.total_evaluations, transfer.run.iterations, row))

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if _transfer(module).run.iterations % CHECK_INTERVAL == 0:
            self.flush(trainer, module)

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.flush(trainer, module)

    def flush(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Reads the pending rows from the device, writes them and logs them.

        Raises:
            FileNotFoundError: the file was removed during the run.
        """
        if not self.pending:
            return
        losses = torch.stack([row for *_, row in self.pending]).tolist()
        rows = [
            dict(zip(self.columns, [evaluation, iteration, *values], strict=True))
            for (evaluation, iteration, _), values in zip(self.pending, losses, strict=True)
        ]
        self.pending.clear()
        self.convergence.observe(rows)
        rows = [row for row in rows if all(map(math.isfinite, row.values()))]
        phase = _transfer(module).run.phase
        with naming(self.path), self.path.open("r+", newline="", encoding="utf-8") as file:
            file.seek(0, os.SEEK_END)
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([phase, *map(_as_text, row.values())] for row in rows)
        for row in rows:
            extras = self.extras.pop(row["evaluation"], {})
            for logger in trainer.loggers:
                logger.log_metrics({**_logged_names(row, phase), **extras})


class Intermediates(pl.Callback):
    """Saves the evaluated image at chosen evaluations, as ``intermediates/00050.png`` …

    Args:
        evaluations: at which to save, counted through all phases.
        history: gets the pictures for its loggers; they are saved in its folder.
    """

    def __init__(self, evaluations: Collection[int], history: History) -> None:
        self.evaluations, self.history = frozenset(evaluations), history

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        folder = _intermediate(self.history.folder, 0).parent
        folder.mkdir(parents=True, exist_ok=True)
        if _transfer(module).run.total_evaluations == 0:
            for of_earlier_run in folder.glob("*.png"):
                of_earlier_run.unlink()

    def on_after_backward(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        transfer = _transfer(module)
        evaluation = transfer.run.total_evaluations
        if evaluation not in self.evaluations:
            return
        file = _intermediate(self.history.folder, evaluation)
        if not file.parent.is_dir():  # write_png would make it, without the earlier pictures
            raise FileNotFoundError(errno.ENOENT, "the folder is gone", str(file.parent))
        loss = float(transfer.losses["total"])
        text = {"Evaluation": str(evaluation), "Loss": f"{loss:.9g}"}
        write_png(to_picture(transfer.evaluated), file, text)
        transfer.run.files.append(file.relative_to(self.history.folder).as_posix())
        if any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
            self.history.extras[evaluation] = _logged_picture(file, evaluation, loss)


class Refinement(pl.Callback):
    """Continues in float32 when a lower precision stops lowering the loss.

    Rounded features make the loss rough. Near a minimum the roughness stalls L-BFGS, although the
    float32 loss can still be lowered. The curvature measured so far is kept.

    Args:
        float32_objective: returns the objective in float32; called at most once.
        history: is flushed before the loss is judged; its ``Convergence`` is told of the change.
    """

    EVALUATIONS, GAIN = 25, 0.001
    """The precision changes when this many evaluations lower the total loss by less than GAIN."""

    def __init__(
        self, float32_objective: Callable[[], Objective], history: History | None = None
    ) -> None:
        self.float32_objective, self.history = float32_objective, history
        self.restart()

    def restart(self) -> None:
        """Begins to measure the gain anew."""
        self.evaluations, self.total = 0, math.inf

    def state_dict(self) -> dict[str, Any]:
        """Returns the evaluations and the total loss when the gain was last measured."""
        return {"evaluations": self.evaluations, "total": self.total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.evaluations, self.total = state_dict["evaluations"], state_dict["total"]

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        transfer = _transfer(module)
        evaluations = transfer.run.evaluations
        if transfer.precision == "float32" or evaluations - self.evaluations < self.EVALUATIONS:
            return
        if self.history is not None:
            self.history.flush(trainer, module)
            if self.history.convergence.divergence:
                return
        total = float(transfer.losses["total"])
        if total > (1 - self.GAIN) * self.total:
            transfer.objective = self.float32_objective()
            if self.history is not None:
                self.history.convergence.change_precision()
            print(f"evaluation {evaluations}: {total:.4g}, on in float32 from here")
        self.evaluations, self.total = evaluations, total


class Progress(pl.Callback):
    """Reports how far the run is, at each ``CHECK_INTERVAL``-th iteration.

    A GPU has to be waited for to read a loss, so not at each.

    Args:
        report: is called with ``title``, the evaluations done, ``budget``, and the total loss.
        title: the experiment, and the phase unless it is the main one.
        budget: evaluations of the phase.
    """

    def __init__(self, report: ReportProgress, title: str, budget: int) -> None:
        self.report, self.title, self.budget = report, title, budget

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        transfer = _transfer(module)
        if transfer.run.iterations % CHECK_INTERVAL == 0:
            loss = float(transfer.losses["total"])
            self.report(self.title, transfer.run.evaluations, self.budget, loss)


def log_again(logger: Logger, folder: Path) -> None:
    """Sends the losses and intermediates of an interrupted run to the logger of its continuation.

    Args:
        logger: new to the run.
        folder: with the files of the run.
    """
    with (folder / HISTORY_FILE).open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            phase = row.pop("stage")
            logged = _logged_names({name: float(value) for name, value in row.items()}, phase)
            evaluation = int(row["evaluation"])
            picture = _intermediate(folder, evaluation)
            if picture.is_file() and isinstance(logger, WandbLogger):
                logged |= _logged_picture(picture, evaluation, float(row["total"]))
            logger.log_metrics(logged)


def _intermediate(folder: Path, evaluation: int) -> Path:
    return folder / "intermediates" / f"{evaluation:05d}.png"


def _logged_picture(file: Path, evaluation: int, loss: float) -> dict[str, Any]:
    caption = f"evaluation {evaluation}, total loss {loss:.4g}"
    return {"intermediate": wandb_image(file, caption)}


def _transfer(module: pl.LightningModule) -> StyleTransfer:
    assert isinstance(module, StyleTransfer)
    return module


def _logged_names(row: dict[str, Any], phase: str) -> dict[str, Any]:
    if phase == "main":
        return row
    return {name if name == "evaluation" else f"{phase}/{name}": row[name] for name in row}


def _as_text(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"
