"""One run of the optimiser, driven by Lightning and watched by the callbacks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger

from pipeline.losses.objective import Objective
from pipeline.runtime.trainer import run
from pipeline.transfer.callbacks import Budget, History, Intermediates, Refinement
from pipeline.transfer.convergence import Course
from pipeline.transfer.module import StyleTransfer
from pipeline.transfer.progress import ProgressBar


def watchers(
    folder: Path,
    evaluations: int,
    intermediates: Collection[int] = (),
    course: Course | None = None,
    *,
    stage: str = "main",
    before: int = 0,
    exact: Callable[[], Objective] | None = None,
    refinement: dict[str, float] | None = None,
) -> list[pl.Callback]:
    """Returns what watches over a run, in the order of its calls; arguments as of ``fit``."""
    course = course or Course()
    history = History(folder / "history.csv", course, stage, before)
    return [
        Budget(evaluations),
        history,
        course,
        Intermediates(folder / "intermediates", intermediates, history),
        *([Refinement(exact, history, refinement)] if exact else []),
    ]


def fit(
    module: StyleTransfer,
    *,
    name: str,
    folder: Path,
    evaluations: int,
    intermediates: Collection[int] = (),
    course: Course | None = None,
    logger: Logger | None = None,
    deterministic: bool = True,
    stage: str = "main",
    before: int = 0,
    exact: Callable[[], Objective] | None = None,
    refinement: dict[str, float] | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> pl.Trainer:
    """Optimises the module's image where its targets are, and returns the trainer.

    Writes ``history.csv`` and ``intermediates/`` into ``folder`` as it goes. A module that has had
    evaluations goes on with the record that lies there.

    Args:
        module: with its objective on the device that is to do the work.
        name: shown beside the progress bar.
        folder: made if it is not there.
        evaluations: the budget.
        intermediates: evaluations at which the image is kept; those before this stage count.
        course: watches over the run.
        logger: gets every evaluation's losses too.
        deterministic: allow only operations that give the same result twice.
        stage: of the run; the history names it.
        before: evaluations of the run's earlier stages, whose record is added to.
        exact: returns the objective in float32, to finish with where another precision stalls;
            None to finish as it was begun.
        refinement: how far an earlier part of the run had come in seeing whether it stalls.
        callbacks: others, called after the run's own.

    Raises:
        DivergedError: the loss left for good.
        SystemExit: 143 after SIGTERM, 130 after an interrupt.
    """
    watching = watchers(
        folder,
        evaluations,
        intermediates,
        course,
        stage=stage,
        before=before,
        exact=exact,
        refinement=refinement,
    )
    return run(
        module,
        next(module.objective.buffers()).device,
        # One batch is one step of the optimiser; what is in it nobody looks at.
        data=itertools.repeat(0),
        precision="32-true",
        max_steps=evaluations,
        callbacks=[*watching, ProgressBar(name, evaluations), *callbacks],
        logger=logger or False,
        deterministic=deterministic,
        enable_checkpointing=False,
    )
