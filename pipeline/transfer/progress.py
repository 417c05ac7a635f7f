"""How far a run is, for whoever sits before it."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from pipeline.transfer.module import StyleTransfer


class ProgressBar(pl.Callback):
    """Shows evaluations done, evaluations/s, time left and loss; off a terminal, the last state."""

    def __init__(self, name: str, evaluations: int) -> None:
        columns = [TextColumn("{task.description}"), BarColumn(), _Speed(), TimeRemainingColumn()]
        self.progress = Progress(*columns, TextColumn("loss {task.fields[loss]}"))
        self.task = self.progress.add_task(name, total=evaluations, loss="–")

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.progress.start()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(module, StyleTransfer)
        self.progress.update(self.task, completed=module.evaluations)
        # Reading a loss makes a GPU wait: now and then is often enough for the eye.
        if module.evaluations % 10 == 0:
            self.progress.update(self.task, loss=f"{float(module.losses['total']):.4g}")

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self.progress.stop()

    def on_exception(self, *_: Any) -> None:
        self.progress.stop()


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.completed:.0f}/{task.total:.0f}  {task.speed or 0:.2f}/s")
