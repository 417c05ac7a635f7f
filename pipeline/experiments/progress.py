"""Progress bars: one for each running experiment, and one for all with the time left."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressDisplay(Progress):
    """Shows progress bars at a terminal; elsewhere prints a line for each finished experiment.

    Use it as a context manager. ``total`` experiments, if they are several, have a bar as well.
    """

    def __init__(self, total: int = 1) -> None:
        console = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._all = self.add_task("all experiments", total=total, visible=total > 1, note="")
        self._begin, self._total, self._done = time.monotonic(), total, 0

    def report(self, title: str, evaluations: int, budget: int, loss: float) -> None:
        """Shows how far an experiment is; arguments as in ``transfer.callbacks.Progress``."""
        if title not in [task.description for task in self.tasks]:
            self.add_task(title, total=budget, note="")
        (task,) = [task for task in self.tasks if task.description == title]
        note = f"{task.speed or 0:.1f}/s  loss {loss:.4g}"
        self.update(task.id, completed=evaluations, note=note)

    def finish(self, experiment: str) -> None:
        """Counts an experiment that has ended, with results or without."""
        for task in self.tasks:
            if task.description.partition(",")[0] == experiment:
                self.remove_task(task.id)
        self._done += 1
        self.update(self._all, completed=self._done)
        if not self.console.is_terminal:
            seconds = (time.monotonic() - self._begin) / self._done * (self._total - self._done)
            self.print(f"{self._done} of {self._total} done, about {seconds:.0f} s left")
