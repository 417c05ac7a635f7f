"""One run of the optimiser, driven by Lightning and watched by the callbacks."""

from __future__ import annotations

import itertools
import logging
import sys
import warnings
from collections.abc import Collection
from pathlib import Path

import lightning.pytorch as pl
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from pipeline.callbacks import Budget, History, Intermediates, ProgressBar
from pipeline.module import StyleTransfer

SIGTERM_STATUS, SIGINT_STATUS = 143, 130


def fit(
    module: StyleTransfer,
    *,
    name: str,
    folder: Path,
    evaluations: int,
    intermediates: Collection[int] = (),
    logger: Logger | None = None,
    deterministic: bool = True,
) -> pl.Trainer:
    """Optimises the module's image where its targets are, and returns the trainer.

    Writes ``history.csv`` and ``intermediates/`` into ``folder`` as it goes.

    Args:
        module: with its objective on the device that is to do the work.
        name: shown beside the progress bar.
        folder: made if it is not there.
        evaluations: the budget.
        intermediates: evaluations at which the image is kept.
        logger: gets every evaluation's losses too.
        deterministic: allow only operations that give the same result twice.

    Raises:
        UserError: the run diverged.
        SystemExit: 143 after SIGTERM, 130 after an interrupt. Lightning ends the first with
            status 0, and DVC would take the unfinished picture for the result.
    """
    _quieten_lightning()
    device = next(module.objective.buffers()).device
    history = History(folder / "history.csv")
    trainer = pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=1,
        precision="32-true",
        max_steps=evaluations,
        callbacks=[
            Budget(evaluations),
            history,
            Intermediates(folder / "intermediates", intermediates, history),
            ProgressBar(name, evaluations),
        ],
        logger=logger or False,
        deterministic=deterministic,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    try:
        # One batch is one step of the optimiser; what is in it nobody looks at.
        trainer.fit(module, train_dataloaders=itertools.repeat(0))
    except SIGTERMException:
        sys.exit(SIGTERM_STATUS)
    except SystemExit:
        sys.exit(SIGINT_STATUS)
    module.to(device)  # Lightning leaves it on the CPU
    return trainer


def _quieten_lightning() -> None:
    """Drops Lightning's advice on data loaders, and the warnings it causes itself."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    warnings.filterwarnings("ignore", module="lightning.pytorch.utilities._pytree")
