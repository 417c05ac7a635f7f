"""Lightning's Trainer as every run here uses it: one device, no advice, a true exit status."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.utilities.exceptions import SIGTERMException

SIGTERM_STATUS, SIGINT_STATUS = 143, 130


def run(
    module: pl.LightningModule,
    device: torch.device,
    *,
    data: Any = None,
    resume_from: Any = None,
    **options: Any,
) -> pl.Trainer:
    """Fits the module on the device and leaves it there; returns the trainer.

    Args:
        module: what to fit.
        device: where.
        data: batches; by default the module's own.
        resume_from: path of a checkpoint of Lightning's, or None.
        options: of ``pl.Trainer``.

    Raises:
        SystemExit: 143 after SIGTERM, 130 after an interrupt. Lightning ends the first with
            status 0, and DVC would take what is unfinished for the result.
    """
    _quieten_lightning()
    # Deterministic mode would write NaN into all memory before it is used, to show what reads it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    trainer = pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, train_dataloaders=data, ckpt_path=resume_from)
    except SIGTERMException:
        sys.exit(SIGTERM_STATUS)
    except SystemExit:
        sys.exit(SIGINT_STATUS)
    finally:
        trainer.strategy.optimizers = []  # L-BFGS's history is large, and the module keeps trainers
        # After an exception Lightning puts back what it found, which may be a callback's.
        signal.signal(signal.SIGINT, handler)
    if trainer.received_sigterm:  # too late for Lightning to see
        sys.exit(SIGTERM_STATUS)
    module.to(device)  # Lightning leaves it on the CPU
    return trainer


def _quieten_lightning() -> None:
    """Drops Lightning's advice on data loaders and folders, and the warnings it causes itself."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", module="lightning.pytorch.utilities._pytree")
