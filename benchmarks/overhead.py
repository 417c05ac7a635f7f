"""Measures the time that a run spends outside its evaluations of the loss."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import WandbLogger

from benchmarks.problems import Problem, seconds
from pipeline.config.schema import Checkpointing as CheckpointOptions
from pipeline.config.schema import Tracking
from pipeline.records.checkpoints import Checkpoints
from pipeline.records.tracking import tracked_run
from pipeline.runtime.device import find_precision
from pipeline.transfer.callbacks import History, Progress, Refinement
from pipeline.transfer.checkpointing import Checkpointing
from pipeline.transfer.convergence import Convergence
from pipeline.transfer.module import StyleTransfer, fit


def overhead(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures a run and the evaluations in it; W&B's own start and end are not timed."""
    problem = Problem(arguments.weights, 512)
    precision, count = find_precision("auto", problem.device), 200
    objective = problem.ours(precision)
    problem.gradient(lambda x: objective(x)["total"])
    module = Timed(objective, problem.content, {"history_size": 20})
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder, tracking = Path(name), Tracking(mode="offline")
        convergence = Convergence(count)
        history = History(folder, convergence, [1, 10, 25, 50, 100, 200])
        callbacks = [
            history,
            convergence,
            Refinement(lambda: objective, history),
            Progress(lambda *_: None, "run", count),
            Checkpointing(Checkpoints("run", 16 * "0"), CheckpointOptions().every, history),
        ]
        with tracked_run(tracking, root=folder, name="run", job_type="benchmark", config={}) as run:
            logger = WandbLogger(experiment=run)
            whole = seconds(lambda: fit(module, callbacks, count, logger))
    return {
        "precision": precision,
        "evaluations": count,
        "run_s": whole / count,
        "evaluation_s": module.spent / count,
        "share": whole / module.spent - 1,
    }


class Timed(StyleTransfer):
    """A module that adds up the seconds of its evaluations, forward and back."""

    spent = 0.0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        with self._timing():
            return super().training_step(batch, batch_idx)

    def backward(self, loss: torch.Tensor, *arguments: Any, **options: Any) -> None:
        with self._timing():
            super().backward(loss, *arguments, **options)

    @contextlib.contextmanager
    def _timing(self) -> Iterator[None]:
        self._wait()
        begin = time.perf_counter()
        yield
        self._wait()
        self.spent += time.perf_counter() - begin

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
