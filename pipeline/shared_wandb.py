"""W&B imported once for many processes: a cell is a fork of one that has it already.

When it is imported W&B makes a folder for pictures on their way, and removes it when the process
ends; the first fork to end would remove it for all.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys

FOLDER = "wandb.sdk.data_types._private", "MEDIA_TMP"
"""Where W&B has that folder: no part of what it offers, so it may be gone some day."""


def load() -> None:
    """Imports W&B, and what its ``init`` imports."""
    switch_off_its_reports()
    for module in ("wandb", "wandb.sdk.launch.inputs.internal"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


def switch_off_its_reports() -> None:
    """Keeps W&B's reports on itself from a server: no time-out that one could set is theirs."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


def forked() -> None:
    """Gives a process that was forked after ``load`` a folder of its own."""
    if "wandb" not in sys.modules:
        return
    module, name = FOLDER
    with contextlib.suppress(ImportError, AttributeError):
        folder = getattr(importlib.import_module(module), name)
        folder._finalizer.detach()
        folder.__init__(suffix="wandb-media")
