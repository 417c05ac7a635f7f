"""How far experiments are: a line for each that is running, and a total with the time left."""

from __future__ import annotations

import sys
import time
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class ProgressReport(NamedTuple):
    """How far one experiment is.

    Attributes:
        title: the experiment, and the phase unless it is the main one.
        evaluations: done so far in this phase.
        budget: evaluations of the phase.
        loss: the total loss.
    """

    title: str
    evaluations: int
    budget: int
    loss: float


class ProgressDisplay:
    """Shows progress bars at a terminal; elsewhere prints a line for each finished experiment.

    Use it as a context manager.

    Args:
        total: how many experiments there are; a total of several has a bar of its own.
    """

    def __init__(self, total: int = 1) -> None:
        self._console = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._all: TaskID | None = None
        if total > 1:
            self._all = self._bars.add_task("all experiments", total=total, note="")
        self._running: dict[str, TaskID] = {}
        self._begin, self._total, self._done = time.monotonic(), total, 0

    def __enter__(self) -> ProgressDisplay:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def print(self, line: str) -> None:
        """Prints a line above the bars."""
        self._console.print(line)

    def report(self, title: str, evaluations: int, budget: int, loss: float) -> None:
        """Shows how far an experiment is; arguments as in ``ProgressReport``."""
        if title not in self._running:
            self._running[title] = self._bars.add_task(title, total=budget, note="")
        task = self._running[title]
        speed = self._bars.tasks[self._bars.task_ids.index(task)].speed or 0
        note = f"{speed:.1f}/s  loss {loss:.4g}"
        self._bars.update(task, completed=evaluations, note=note)

    def finish(self, experiment: str) -> None:
        """Counts an experiment that has ended, with results or without."""
        for title in [t for t in self._running if t.partition(",")[0] == experiment]:
            self._bars.remove_task(self._running.pop(title))
        self._done += 1
        if self._all is not None:
            self._bars.update(self._all, completed=self._done)
        if not self._console.is_terminal:
            seconds = (time.monotonic() - self._begin) / self._done * (self._total - self._done)
            self.print(f"{self._done} of {self._total} done, about {seconds:.0f} s left")
