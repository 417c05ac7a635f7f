"""How far a run of many experiments is: a line for each running one, and a total with time left."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pipeline.experiments.executor import Outcome, ProgressReport


class ProgressDisplay:
    """Shows progress at a terminal; elsewhere prints a plain line for each finished experiment.

    Use it as a context manager.

    Args:
        total: how many experiments there are.
        workers: how many run at a time.
    """

    def __init__(self, total: int, workers: int) -> None:
        console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._live = console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=not self._live,
        )
        self._total = self._bars.add_task("all experiments", total=total, note="")
        self._running: dict[str, TaskID] = {}
        self._begin, self._count, self._done = time.monotonic(), total, 0
        self.print(f"{total} experiments to compute, {workers} at a time")

    def __enter__(self) -> ProgressDisplay:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def print(self, line: str) -> None:
        """Prints a line above the bars."""
        self._bars.console.print(line, markup=False)

    def observe(self, message: ProgressReport | str) -> None:
        """Shows what an executor reports."""
        if isinstance(message, str):
            self.print(message)
            return
        name = message.experiment
        if name not in self._running:
            self._running[name] = self._bars.add_task(name, total=message.budget, note="")
        note = f"loss {message.loss}" if message.loss else ""
        self._bars.update(
            self._running[name], completed=message.evaluations, total=message.budget, note=note
        )

    def finish(self, outcome: Outcome) -> None:
        """Counts an experiment that has ended."""
        if outcome.experiment in self._running:
            self._bars.remove_task(self._running.pop(outcome.experiment))
        self._done += 1
        self._bars.update(self._total, completed=self._done)
        if outcome.error:
            self.print(f"{outcome.experiment} failed: {outcome.error}")
        elif not self._live:
            passed = time.monotonic() - self._begin
            left = passed / self._done * (self._count - self._done)
            self.print(
                f"{outcome.experiment} is done: {self._done} of {self._count}, "
                f"about {left:.0f} s left"
            )
