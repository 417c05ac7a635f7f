"""The protocol of executors, the messages of a running experiment, and its computation."""

from __future__ import annotations

import gc
import io
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from pipeline.config.plan import Plan
from pipeline.config.schema import RunOptions
from pipeline.errors import UserError, masked
from pipeline.experiments.progress import ProgressDisplay

STOPPING_S = 30.0
"""How long an experiment may take to write a checkpoint and end."""


class Outcome(NamedTuple):
    """How an experiment ended; ``error`` is why it has no results, empty if it has."""

    experiment: str
    error: str = ""


class Begun(NamedTuple):
    """An experiment has begun; ``where`` is the node of a cluster, or empty."""

    where: str = ""


class Progress(NamedTuple):
    """How far an experiment is; fields as in ``transfer.callbacks.Progress``."""

    title: str
    evaluations: float
    budget: int
    loss: float


Message = str | Begun | Progress
"""What an experiment reports while it is computed; a text is a line that it printed."""


class Executor(AbstractContextManager[Any], Protocol):
    """Computes experiments; the end of its block stops those that still run.

    The results are in ``data/experiments/NAME`` before an outcome without an error is there.
    """

    def submit(self, plan: Plan, options: RunOptions) -> Future[Outcome]:
        """Begins an experiment as soon as there is room for it."""
        ...


def compute(plan: Plan, options: RunOptions, send: Callable[[Message], None]) -> Outcome:
    """Runs an experiment in this process and folder, and sends how far it is."""
    from pipeline.experiments.run import run_experiment

    error = ""
    try:
        run_experiment(plan, options, lambda *progress: send(Progress(*progress)))
    except UserError as failure:
        error = str(failure)
    except Exception:  # noqa: BLE001 - the other experiments go on
        error = masked(traceback.format_exc())
    gc.collect()  # a module and its trainer refer to each other
    return Outcome(plan.experiment, error)


def show(message: Message, experiment: str, display: ProgressDisplay) -> None:
    """Shows what an experiment reports."""
    if isinstance(message, str):
        display.print(message)
    elif isinstance(message, Begun):
        display.begin(experiment, message.where)
    else:
        display.report(*message)


class LineStream(io.TextIOBase):
    """A text stream that calls a function with each line; any thread may write to it."""

    def __init__(self, send: Callable[[str], None]) -> None:
        self._send, self._lock, self._rest = send, threading.Lock(), ""

    def write(self, text: str, /) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(str.strip, lines):
            self._send(line)
        return len(text)
