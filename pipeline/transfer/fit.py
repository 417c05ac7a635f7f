"""Optimises a module's image by Lightning's Trainer, one batch a step of the optimizer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger

from pipeline.runtime.trainer import run
from pipeline.transfer.module import StyleTransfer


def fit(
    module: StyleTransfer,
    callbacks: Sequence[pl.Callback],
    evaluations: int,
    logger: Logger | None = None,
    deterministic: bool = True,
) -> pl.Trainer:
    """Optimises the image on the device of its objective, and returns the trainer.

    Args:
        module: with the image and the objective.
        callbacks: called in this order.
        evaluations: the most steps that are taken. A step of a line search has several
            evaluations; ``Convergence`` ends the phase when their number is reached.
        logger: which the callbacks find as the trainer's.
        deterministic: allow only operations that give the same result twice.

    Raises:
        DivergedError: the loss diverged.
        SystemExit: 143 after SIGTERM, 130 after an interrupt.
    """
    return run(
        module,
        next(module.objective.buffers()).device,
        data=itertools.repeat(0),  # the module does not look into its batches
        precision="32-true",
        max_steps=evaluations,
        callbacks=list(callbacks),
        logger=logger or False,
        deterministic=deterministic,
        enable_checkpointing=False,
    )
