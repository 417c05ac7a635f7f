"""Progress bars: one for each running experiment, and one for all with the time left."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressDisplay(Progress):
    """Shows progress bars at a terminal; elsewhere prints a line for each finished experiment.

    Use it as a context manager. ``total`` experiments, if they are several, have a bar as well,
    with how many of them run, wait and have failed.
    """

    def __init__(self, total: int = 1) -> None:
        console = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.4g}/{task.total:.0f}"),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._all = self.add_task("all experiments", total=total, visible=total > 1, note="")
        self._begin, self._total, self._done, self._failed = time.monotonic(), total, 0, 0
        self._where: dict[str, str] = {}  # of the running experiments

    def begin(self, experiment: str, where: str = "") -> None:
        """Counts an experiment as running, on a node of a cluster if one is named."""
        if experiment in self._where:
            self.print(f"{experiment}: its worker was lost. It runs again on {where}")
        self._where[experiment] = where
        self._count()

    def report(self, title: str, evaluations: float, budget: int, loss: float) -> None:
        """Shows how far an experiment is; arguments as in ``transfer.callbacks.Progress``."""
        if title not in [task.description for task in self.tasks]:
            self.add_task(title, total=budget, note="")
        (task,) = [task for task in self.tasks if task.description == title]
        note = f"{task.speed or 0:.1f}/s  loss {loss:.4g}"
        if where := self._where.get(_experiment(title)):
            note += f"  on {where}"
        self.update(task.id, completed=evaluations, note=note)

    def finish(self, experiment: str, failed: bool = False) -> None:
        """Counts an experiment that has ended, with results or without."""
        for task in self.tasks:
            if _experiment(task.description) == experiment:
                self.remove_task(task.id)
        self._where.pop(experiment, None)
        self._done += 1
        self._failed += failed
        counts = self._count()
        if not self.console.is_terminal:
            seconds = (time.monotonic() - self._begin) / self._done * (self._total - self._done)
            self.print(f"{self._done} of {self._total} done, {counts}, about {seconds:.0f} s left")

    def _count(self) -> str:
        """Shows and returns how many experiments run, wait and have failed."""
        running = len(self._where)
        waiting = self._total - self._done - running
        counts = f"{running} running, {waiting} waiting"
        counts += f", {self._failed} failed" if self._failed else ""
        self.update(self._all, completed=self._done, note=counts)
        return counts


def _experiment(title: str) -> str:
    """Returns the experiment that a progress bar is of; its phase may follow a comma."""
    return title.partition(",")[0]
