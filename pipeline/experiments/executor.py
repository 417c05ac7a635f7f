"""Computes experiments in worker processes on this machine.

Importing torch, Lightning and W&B takes longer than many an experiment, so a worker process imports
them once and then computes one experiment after another. There is a pipe to each worker: the death
of one ends its own experiment and no other, while the pools of the standard library end all work.
"""

from __future__ import annotations

import contextlib
import gc
import io
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from pipeline.config.plan import Plan
from pipeline.config.schema import RunOptions
from pipeline.errors import UserError, masked
from pipeline.experiments.progress import ProgressDisplay
from pipeline.runtime.processes import end_with_parent

WORKER_MEMORY = 2**29
"""Bytes that a worker takes beside its experiment: imported packages and W&B. 370 MiB were seen."""
GPU_WORKER_MEMORY = 2**30
"""Bytes that CUDA takes of a GPU for each worker; 750 MiB were seen."""
GPU_WORKERS = 8
"""Workers that share a GPU, at most. On an H200, for images of 256 pixels, four made 2.1 times as
many a second as one, and eight 2.7 times."""
STOPPING_S = 30.0
"""How long a worker may take to write a checkpoint and end."""


class Outcome(NamedTuple):
    """How an experiment ended; ``error`` is why it has no results, empty if it has."""

    experiment: str
    error: str = ""


class LocalExecutor:
    """Computes experiments in worker processes; use it as a context manager.

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
        """Begins an experiment as soon as a worker is free.

        This method is all that the runner asks of an executor; one for a cluster would have it too.
        """
        return self._pool.submit(self._compute, plan, options)

    def _compute(self, plan: Plan, options: RunOptions) -> Outcome:
        worker: _Worker | None = getattr(self._own, "worker", None)
        if worker is None or not worker.process.is_alive():
            with self._lock:
                if self._stopped:
                    return Outcome(plan.experiment, "It was not begun.")
                worker = self._own.worker = _Worker(self._threads)
                self._started.append(worker)
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
                if isinstance(message, str):
                    display.print(message)
                else:
                    display.report(*message)
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
    sender = _Sender(pipe)
    with contextlib.redirect_stdout(sender), contextlib.redirect_stderr(sender):
        from pipeline.experiments.run import run_experiment

        gc.freeze()  # what is imported stays, and need not be looked through
        while True:
            try:
                plan, options = pipe.recv()
            except EOFError:
                return
            error = ""
            try:
                run_experiment(plan, options, lambda *progress: sender.send(progress))
            except UserError as failure:
                error = str(failure)
            except Exception:  # noqa: BLE001 - the other experiments go on
                error = masked(traceback.format_exc())
            gc.collect()  # a module and its trainer refer to each other
            sender.send(Outcome(plan.experiment, error))


class _Sender(io.TextIOBase):
    """Sends messages through a pipe from any thread; as a text stream it sends lines."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock, self._rest = pipe, threading.Lock(), ""

    def send(self, message: Any) -> None:
        with self._lock:
            self._pipe.send(message)

    def write(self, text: str, /) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(str.strip, lines):
            self.send(line)
        return len(text)


def count_workers(plans: Collection[Plan]) -> int:
    """Returns how many of the experiments the cores and the memory of their device have room for.

    Experiments on different devices, or on one that cannot be shared, run one after another.
    """
    if len(plans) == 1:
        return 1
    # torch is imported for this alone, and not where nothing is computed.
    from pipeline.runtime.device import available, find_device, find_precision
    from pipeline.transfer.memory import demands, estimate

    devices = {find_device(plan.settings.device) for plan in plans}
    device = devices.pop()
    if devices or device.type not in ("cpu", "cuda"):
        return 1
    needed = max(
        estimate(demand)
        for settings in (plan.settings for plan in plans)
        for demand in demands(settings, device, find_precision(settings.precision, device))
    )
    threads = max(plan.settings.threads or 1 for plan in plans)
    most, beside = count_cores() // threads, WORKER_MEMORY
    if device.type == "cuda":
        most, beside = min(most, GPU_WORKERS), GPU_WORKER_MEMORY
    return max(1, min(most, available(device) // (needed + beside)))


def count_cores() -> int:
    """Returns how many cores this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
