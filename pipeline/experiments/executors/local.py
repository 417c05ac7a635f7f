"""Computes experiments in worker processes on this machine.

Importing torch, Lightning and W&B takes longer than many an experiment, so a worker process imports
them once and then computes one experiment after another. There is a pipe to each worker: the death
of one ends its own experiment and no other, while the pools of the standard library end all work.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from pipeline.config.plan import EXPERIMENT_CODE, Plan
from pipeline.config.schema import RunOptions
from pipeline.experiments.executors.executor import (
    STOPPING_S,
    Begun,
    LineStream,
    Outcome,
    compute,
    show,
)
from pipeline.experiments.progress import ProgressDisplay
from pipeline.runtime.processes import end_with_parent


class LocalExecutor:
    """Computes experiments in worker processes.

    ``display`` gets the progress of the experiments, and the lines that they print.
    """

    def __init__(self, workers: int, threads: int, display: ProgressDisplay) -> None:
        self._threads, self._display = threads, display
        self._own = threading.local()  # each thread of the pool drives a worker of its own
        self._pool = ThreadPoolExecutor(workers)
        self._lock = threading.Lock()
        self._started: list[_Worker] = []
        self._stopped = False

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the workers; those that are computing write a checkpoint first."""
        self._stopped = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in self._started:
            worker.process.terminate()
        for worker in self._started:
            worker.process.join(STOPPING_S)
            worker.process.kill()
        self._pool.shutdown()

    def submit(self, plan: Plan, options: RunOptions) -> Future[Outcome]:
        """Begins an experiment as soon as a worker is free."""
        return self._pool.submit(self._compute, plan, options)

    def _compute(self, plan: Plan, options: RunOptions) -> Outcome:
        worker: _Worker | None = getattr(self._own, "worker", None)
        if worker is None or not worker.process.is_alive():
            with self._lock:
                if self._stopped:
                    return Outcome(plan.experiment, "It was not begun.")
                worker = self._own.worker = _Worker(self._threads)
                self._started.append(worker)
        show(Begun(), plan.experiment, self._display)
        return worker.compute(plan, options, self._display)


class _Worker:
    """A process that computes the experiments it is sent, and this side's end of the pipe to it."""

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other_end = context.Pipe()
        arguments = other_end, threads, sys.orig_argv
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        other_end.close()  # so that the pipe ends when the worker does

    def compute(self, plan: Plan, options: RunOptions, display: ProgressDisplay) -> Outcome:
        """Sends an experiment, passes on what the worker reports, and returns how it ended."""
        try:
            self._pipe.send((plan, options))
            while not isinstance(message := self._pipe.recv(), Outcome):
                show(message, plan.experiment, display)
        except (EOFError, OSError):
            self.process.join()
            return Outcome(plan.experiment, _death(self.process.exitcode or 0))
        return message


def _death(exit_code: int) -> str:
    reason = signal.Signals(-exit_code).name if exit_code < 0 else f"exit status {exit_code}"
    return (
        f"The process that computed it ended ({reason}). SIGKILL often means that the memory was "
        "full: run fewer at a time (JOBS). Run again: it goes on from its checkpoint"
    )


def _serve(pipe: Connection, threads: int, command: list[str]) -> None:
    """Computes experiments until the pipe ends: the whole life of a worker process."""
    end_with_parent()
    sys.orig_argv = command  # for W&B; multiprocessing does the same with sys.argv
    # An interrupt at the terminal reaches all processes. It is the runner that ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    lock = threading.Lock()

    def send(message: Any) -> None:
        with lock:
            pipe.send(message)

    lines = LineStream(send)
    with contextlib.redirect_stdout(lines), contextlib.redirect_stderr(lines):
        import_module(EXPERIMENT_CODE)
        gc.freeze()  # what is imported stays, and need not be looked through
        while True:
            try:
                plan, options = pipe.recv()
            except EOFError:
                return
            send(compute(plan, options, send))
