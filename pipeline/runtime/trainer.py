"""Fits a LightningModule on one device, quietly, and exits with a status if interrupted."""

import logging
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.utilities.exceptions import SIGTERMException


def run(
    module: pl.LightningModule,
    device: torch.device,
    *,
    data: Any = None,
    resume_from: Path | None = None,
    **options: Any,
) -> pl.Trainer:
    """Fits the module on the device, leaves it there, and returns the trainer.

    ``data`` are batches in place of the module's own; ``resume_from`` is a Lightning checkpoint.

    Raises:
        SystemExit: 143 after SIGTERM, 130 after an interrupt. Lightning itself exits with status 0
            after SIGTERM, and DVC would take the unfinished outputs for the result.
    """
    # Lightning's advice on data loaders and folders, and warnings of its own making.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", module="lightning.pytorch.utilities._pytree")
    # Deterministic mode would fill all memory with NaN before its first use, for debugging.
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
        sys.exit(128 + signal.SIGTERM)
    except SystemExit:
        sys.exit(128 + signal.SIGINT)
    finally:
        # The module keeps its trainer, and L-BFGS's history is large.
        trainer.strategy.optimizers = []
        # After an exception Lightning restores the handler it saw, which may be a callback's.
        signal.signal(signal.SIGINT, handler)
    if trainer.received_sigterm:  # after the last step, where Lightning does not check for it
        sys.exit(128 + signal.SIGTERM)
    module.to(device)  # Lightning leaves it on the CPU
    return trainer
