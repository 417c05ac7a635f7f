"""Lightning callbacks of a run: history of losses and images, precision, progress.

Lightning calls ``on_after_backward`` once for each evaluation of the objective, with the evaluated
image and its gradient in place, and ``on_train_batch_end`` once for each step, after the image has
moved. A line search evaluates more than once in a step.
"""

import csv
import errno
import math
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger, WandbLogger

from pipeline import paths
from pipeline.files import naming, own_folder, write_text
from pipeline.imaging.picture_files import write_png
from pipeline.imaging.tensors import to_picture
from pipeline.losses.objective import Objective
from pipeline.records.tracking import wandb_image
from pipeline.transfer.convergence import CHECK_INTERVAL, Convergence
from pipeline.transfer.module import StyleTransfer

ReportProgress = Callable[[str, float, int, float], None]

HISTORY_FILE = "history.csv"


class History(pl.Callback):
    """Saves and logs the losses of every evaluation, and the images of some evaluations.

    Columns of ``history.csv``: stage (the phase), evaluation (from 1, through all phases),
    iteration (steps of the phase before it), the losses of ``Objective.names``, and
    ``gradient_norm``, the L2 norm of ∂total/∂image for RGB in [0, 1]. A row with NaN or infinity
    is left out. The values of ``CHECK_INTERVAL`` iterations are read from the device at once.
    Loggers get the losses of phases other than ``main`` as ``PHASE/NAME``: they come from another
    network or image size.

    Args:
        folder: gets ``history.csv`` and ``intermediates/00050.png`` …, which a new run replaces.
        convergence: observes every row.
        intermediates: evaluations of which the image is saved, counted through all phases.
        develop: makes the image that is saved of the image that is optimised.
    """

    def __init__(
        self,
        folder: Path,
        convergence: Convergence,
        intermediates: Collection[int] = (),
        develop: Callable[[torch.Tensor], torch.Tensor] = lambda image: image,
    ) -> None:
        self.folder, self.convergence, self.intermediates = folder, convergence, intermediates
        self.develop = develop
        self.path = folder / HISTORY_FILE
        self.columns: list[str] = []
        self.pending: list[tuple[int, int, torch.Tensor]] = []

    def on_fit_start(self, trainer: pl.Trainer, module: StyleTransfer) -> None:
        self.columns = ["evaluation", "iteration", *module.objective.names, "gradient_norm"]
        if module.run.total_evaluations:
            return
        remove_intermediates(self.folder)
        module.run.files.append(HISTORY_FILE)
        write_text(self.path, ",".join(["stage", *self.columns]) + "\n")

    def on_after_backward(self, trainer: pl.Trainer, module: StyleTransfer) -> None:
        row = torch.stack([*module.losses.values(), module.gradient_norm])
        evaluation = module.run.total_evaluations
        self.pending.append((evaluation, module.run.iterations, row))
        if evaluation in self.intermediates:
            self._save_image(evaluation, module)

    def _save_image(self, evaluation: int, module: StyleTransfer) -> None:
        file = _intermediate(self.folder, evaluation)
        if not file.parent.is_dir():  # write_png would make it, without the earlier pictures
            raise FileNotFoundError(errno.ENOENT, "the folder is gone", str(file.parent))
        text = {"Evaluation": str(evaluation), "Loss": _as_text(float(module.losses["total"]))}
        write_png(to_picture(self.develop(module.evaluated)), file, text)
        module.run.files.append(file.relative_to(self.folder).as_posix())

    def on_train_batch_end(self, trainer: pl.Trainer, module: StyleTransfer, *_: Any) -> None:
        if module.run.iterations % CHECK_INTERVAL == 0:
            self.flush(trainer, module)

    def flush(self, trainer: pl.Trainer, module: StyleTransfer) -> None:
        """Reads the pending rows from the device, and writes and logs them; the file must exist."""
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
        phase = module.run.phase
        if self.path.is_symlink() or self.path.stat().st_nlink > 1:
            # DVC has put a file of its cache in place of the one that this run began.
            raise FileNotFoundError(errno.ENOENT, "the file was replaced", str(self.path))
        with naming(self.path), self.path.open("r+", newline="", encoding="utf-8") as file:
            file.seek(0, os.SEEK_END)
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([phase, *map(_as_text, row.values())] for row in rows)
        for row in rows:
            for logger in trainer.loggers:
                _log(logger, self.folder, phase, row)

    on_fit_end = flush  # type: ignore[assignment]


class Refinement(pl.Callback):
    """Continues in float32 when a lower precision stops lowering the loss.

    Rounded features make the loss rough. Near a minimum the roughness stalls L-BFGS, although the
    float32 loss can still be lowered. The curvature measured so far is kept.

    ``exact`` returns the objective in float32, and is called at most once. The history is flushed
    before the loss is judged, and its ``Convergence`` is told of the change.
    """

    EVALUATIONS, GAIN = 25, 0.001
    """The precision changes when this many evaluations lower the total loss by less than GAIN."""

    def __init__(self, exact: Callable[[], Objective], history: History | None = None) -> None:
        self.exact, self.history = exact, history
        self.restart()

    def restart(self) -> None:
        """Begins to measure the gain anew."""
        self.evaluations, self.total = 0, math.inf

    def state_dict(self) -> dict[str, Any]:
        """Returns the evaluations and the total loss when the gain was last measured."""
        return {"evaluations": self.evaluations, "total": self.total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)

    def on_train_batch_end(self, trainer: pl.Trainer, module: StyleTransfer, *_: Any) -> None:
        evaluations = module.run.evaluations
        if module.precision == "float32" or evaluations - self.evaluations < self.EVALUATIONS:
            return
        if self.history is not None:
            self.history.flush(trainer, module)
            if self.history.convergence.divergence:
                return
        total = float(module.losses["total"])
        if total > (1 - self.GAIN) * self.total:
            module.objective = self.exact()
            if self.history is not None:
                self.history.convergence.change_precision(module.objective)
            print(f"evaluation {evaluations}: {total:.4g}, on in float32 from here")
        self.evaluations, self.total = evaluations, total


class Progress(pl.Callback):
    """Reports how far the run is, at each ``CHECK_INTERVAL``-th iteration.

    A GPU has to be waited for to read a loss, so not at each. In tiles an evaluation may take
    minutes, so it is reported after each tile. ``report`` is called with the title, the evaluations
    done, with the share of the running one, the budget of the phase, and the total loss.
    """

    def __init__(self, report: ReportProgress, title: str, budget: int) -> None:
        self.report, self.title, self.budget = report, title, budget

    def on_train_batch_start(self, trainer: pl.Trainer, module: StyleTransfer, *_: Any) -> None:
        if not module.run.tile:
            return
        loss = float(module.losses["total"]) if module.losses else math.nan

        def report(share: float) -> None:
            # The module counts an evaluation between the way forward and the way back.
            whole = module.run.evaluations - (share > 1 / 2)
            self.report(self.title, whole + share, self.budget, loss)

        module.objective.features.watchers["progress"] = report

    def on_train_batch_end(self, trainer: pl.Trainer, module: StyleTransfer, *_: Any) -> None:
        if module.run.iterations % CHECK_INTERVAL == 0:
            loss = float(module.losses["total"])
            self.report(self.title, module.run.evaluations, self.budget, loss)


def log_again(logger: Logger, folder: Path) -> None:
    """Sends the losses and intermediates of an interrupted run to a new logger."""
    with (folder / HISTORY_FILE).open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            phase = row.pop("stage")
            _log(logger, folder, phase, {name: float(value) for name, value in row.items()})


def remove_intermediates(folder: Path) -> None:
    """Removes intermediate images and time-lapse, of an earlier run or the lost part of a run."""
    intermediates = _intermediate(folder, 0).parent
    own_folder(intermediates)
    for picture in intermediates.glob("*.png"):
        picture.unlink()
    (folder / paths.TIMELAPSE).unlink(missing_ok=True)


def _intermediate(folder: Path, evaluation: int) -> Path:
    return folder / "intermediates" / f"{evaluation:05d}.png"


def _log(logger: Logger, folder: Path, phase: str, row: Mapping[str, float]) -> None:
    """Logs a row of the history, and the intermediate image of its evaluation if there is one."""
    prefix = "" if phase == "main" else f"{phase}/"
    logged: dict[str, Any] = {
        name if name == "evaluation" else f"{prefix}{name}": value for name, value in row.items()
    }
    evaluation = int(row["evaluation"])
    picture = _intermediate(folder, evaluation)
    if isinstance(logger, WandbLogger) and picture.is_file():
        caption = f"evaluation {evaluation}, total loss {row['total']:.4g}"
        logged["intermediate"] = wandb_image(picture, caption)
    logger.log_metrics(logged)


def _as_text(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"
