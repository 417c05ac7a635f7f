"""`dvc repro`, with several experiments at a time.

    python -m pipeline.experiments.runner [JOBS]

DVC runs its stages one after another. But it lets go of the repository while a command runs, so
several of its processes may work in one, each on experiments of its own. A core that has an
experiment to itself is used better than cores that share one, and what comes out is the same, on
the CPUs where that was tried: no sum here depends on the number of threads (``summation``).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from pipeline import paths
from pipeline.config.params import PARAMS_FILE, read_params
from pipeline.config.schema import Experiment
from pipeline.errors import UserError, command_line
from pipeline.experiments.results import read_cells
from pipeline.records.status import read_failure

DVC = sys.executable, "-m", "dvc"
PROCESS = 2**29
"""Bytes of a cell beside its estimate: a share of what is imported, and W&B; 370 MiB were seen."""
CONTEXT = 2**30
"""The same on a GPU: what CUDA takes for each process; 750 MiB were seen."""


def repro(jobs: int | None = None) -> int:
    """Brings all of dvc.yaml up to date, and returns DVC's status.

    Args:
        jobs: how many experiments at a time. None: of those without results of these settings,
            pictures and weights one for each core, or as many as the memory holds, on a GPU
            ``SHARING`` at most; all others, one after another.

    Where a picture cannot be had, the experiments that do without it are made all the same.

    Raises:
        UserError: something is wrong with params.yaml.
    """
    params = read_params()
    experiments = params.experiments
    print(f"{PARAMS_FILE}: {len(experiments)} experiments", flush=True)
    if failed := _dvc("repro", "backbone"):
        return failed
    status = _dvc("repro", "fetch")
    if status:
        experiments = {name: each for name, each in experiments.items() if _can_run(name, each)}
    cells = read_cells(params)
    missing = {name: experiments[name] for name in experiments if not cells[name].results}
    if not jobs:
        experiments = missing
        jobs = _fitting(experiments) if len(experiments) > 1 else 1
    if experiments and (jobs > 1 or status):
        _side_by_side(experiments, min(jobs, len(experiments)))
    return status or _dvc("repro")  # what is left, or failed, and the report


def _can_run(name: str, settings: Experiment) -> bool:
    """Returns whether an experiment has its pictures, although not all have."""
    needed = paths.picture(settings.content), paths.picture(settings.style)
    return all(file.is_file() for file in needed) and not read_failure(name)


def _fitting(experiments: dict[str, Experiment]) -> int:
    """Returns how many of the experiments the cores and their device's memory have room for."""
    from pipeline.runtime.device import SHARING, available, find_device, find_precision
    from pipeline.transfer.memory import demands, estimate

    devices = {find_device(settings.device) for settings in experiments.values()}
    device = devices.pop()
    if devices or device.type not in ("cpu", "cuda"):
        return 1
    needed = [
        estimate(demand)
        for settings in experiments.values()
        for demand in demands(settings, device, find_precision(settings.precision, device))
    ]
    threads = max(settings.threads or 1 for settings in experiments.values())
    most, beside = _cores() // threads, PROCESS
    if device.type == "cuda":
        most, beside = min(most, SHARING), CONTEXT
    return max(1, min(most, available(device) // (max(needed) + beside)))


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _dvc(*arguments: str) -> int:
    return subprocess.run([*DVC, *arguments], check=False).returncode


def _side_by_side(experiments: dict[str, Experiment], jobs: int) -> None:
    """Has ``jobs`` processes of DVC run the experiments. One that fails leaves the rest of its."""
    command = *DVC, "--wait-for-lock", "repro", "--quiet", "--single-item"
    # Progress bars of several would draw over each other: a terminal that cannot has none.
    settings = {"OMP_NUM_THREADS": str(max(1, _cores() // jobs)), "TERM": "dumb"}
    print(f"{jobs} experiments at a time", flush=True)
    signal.signal(signal.SIGTERM, _terminated)
    names = list(experiments)
    workers = [
        subprocess.Popen(
            [*command, *(f"stylize@{name}" for name in names[job::jobs])],
            env={**os.environ, **settings},
        )
        for job in range(jobs)
    ]
    try:
        for worker in workers:
            worker.wait()
    except SystemExit:
        for worker in workers:
            worker.terminate()
        raise
    finally:  # after an interrupt, which they got too
        for worker in workers:
            worker.wait()


def _terminated(number: int, _: Any) -> NoReturn:
    sys.exit(128 + number)


def _jobs(arguments: Sequence[str]) -> int | None:
    if not arguments:
        return None
    if len(arguments) > 1 or not arguments[0].isdecimal() or int(arguments[0]) < 1:
        raise UserError(
            f"JOBS is {' '.join(arguments)!r}, but it must be a whole number from 1: how many "
            "experiments at a time. Leave it out for as many as there are cores"
        )
    return int(arguments[0])


def main() -> None:
    """Runs the command."""
    if status := repro(_jobs(sys.argv[1:])):
        sys.exit(status)


if __name__ == "__main__":
    command_line(main)
