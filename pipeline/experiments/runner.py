"""Brings all experiments of params.yaml up to date: `python -m pipeline run`.

Plain `dvc repro` comes to the same, one experiment after another.
"""

import signal
import sys
import time
from collections.abc import Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline import paths
from pipeline.config.grids import update_cells_file
from pipeline.config.params import PARAMS_FILE, read_params
from pipeline.config.plan import Plan, read_plan, write_plans
from pipeline.config.schema import Params
from pipeline.errors import UserError, counted
from pipeline.experiments import dvc_stages
from pipeline.experiments.executors.executor import Executor
from pipeline.experiments.executors.local import LocalExecutor
from pipeline.experiments.executors.ray_cluster import (
    ClusterOptions,
    RayExecutor,
    check_reachable,
)
from pipeline.experiments.executors.resources import count_cores, count_workers
from pipeline.experiments.progress import ProgressDisplay
from pipeline.experiments.results import has_current_results
from pipeline.files import read_json
from pipeline.records.locks import HeldError, hold
from pipeline.records.status import record_failure

COMMIT_INTERVAL_S = 30.0
"""The least time between two commits to DVC while experiments are computed."""
MAX_COMMIT_SHARE = 0.1
"""The share of the time that these commits may take: DVC reads and writes all of dvc.lock."""


def run(jobs: int | None = None, cluster: ClusterOptions | None = None) -> None:
    """Computes what is out of date, and writes the report.

    Experiments whose pictures cannot be fetched and those that fail do not keep the others from
    being computed. Both make this raise, after the report was written. ``jobs`` run at a time, by
    default one for each core as far as the memory goes. With ``cluster``, Ray computes them.

    Raises:
        UserError: a mistake in params.yaml, no cluster, or experiments without results, each with
            its reason.
        SystemExit: 130 after an interrupt, 143 after SIGTERM; what was running has a checkpoint.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    if cluster is not None:
        check_reachable(cluster)
    with _sole_runner():
        try:
            _run(jobs, cluster)
        except SystemExit:
            print("stopped: the same command goes on from here", flush=True)
            raise


@contextmanager
def _sole_runner() -> Iterator[None]:
    """Waits until no other process is between here and the end of the block in this workspace."""
    lock = Path("data/status/_runner.lock")
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(lock))
        except HeldError as holder:
            print(f"process {holder} computes the experiments here: waits for its end", flush=True)
            stack.enter_context(hold(lock, wait=True))
        yield


def _run(jobs: int | None, cluster: ClusterOptions | None) -> None:
    params, text = read_params(), PARAMS_FILE.read_bytes()
    print(f"{PARAMS_FILE}: {counted(len(params.experiments), 'experiment')}", flush=True)
    update_cells_file(params)  # before DVC reads it
    planned = _prepare(params)
    changed = dvc_stages.outdated_experiments()
    outdated = [name for name in planned if name in changed]
    missing = [name for name in outdated if changed[name] or not has_current_results(name)]
    restored = dvc_stages.restore_experiments(missing)
    missing = [name for name in missing if name not in restored]
    commits = _Commits([name for name in outdated if name not in missing])
    failed = _compute(missing, params, jobs, cluster, commits)
    commits.make()
    reasons = [f"{name}: {reason}" for name, reason in failed.items()]
    if len(planned) < len(params.experiments):
        reasons.append("the pictures named above are missing")
    edited = PARAMS_FILE.read_bytes() != text
    try:
        if reasons or edited:  # DVC would compute what the edit has changed, one after another
            dvc_stages.reproduce("report", single_item=True)
        else:
            dvc_stages.reproduce()
    except UserError as error:
        if not reasons:
            raise
        reasons.append(str(error))
    if reasons:
        raise UserError("\n".join(["not everything was computed", *reasons]))
    if edited:
        print(f"{PARAMS_FILE} was edited meanwhile: run again for what has changed")


def _prepare(params: Params) -> list[str]:
    """Fetches pictures, writes plans and prepares the network; returns the planned experiments."""
    try:
        dvc_stages.reproduce("backbone")
    except UserError:
        fetched = read_json(paths.FETCH_RECORDS)
        used = {name for each in params.experiments.values() for name in each.images.values()}
        if not any("error" in fetched.get(name, {}) for name in used):
            raise
        planned = write_plans(params, skip_missing=True)
        if not planned:
            raise
        dvc_stages.reproduce("backbone", single_item=True)
        return planned
    return list(params.experiments)


class _Commits:
    """Commits finished experiments to DVC, at intervals.

    If the runner is killed, `dvc repro` computes at most those again that no commit has yet.
    """

    def __init__(self, finished: Collection[str]) -> None:
        self._finished = list(finished)
        self._next = time.monotonic() + COMMIT_INTERVAL_S

    def add(self, experiment: str) -> None:
        self._finished.append(experiment)

    def make_if_due(self) -> None:
        if time.monotonic() >= self._next:
            self.make()

    def make(self) -> None:
        begin = time.monotonic()
        dvc_stages.commit_experiments(self._finished)
        self._finished.clear()
        end = time.monotonic()
        self._next = end + max(COMMIT_INTERVAL_S, (end - begin) / MAX_COMMIT_SHARE)


def _compute(
    names: list[str],
    params: Params,
    jobs: int | None,
    cluster: ClusterOptions | None,
    commits: _Commits,
) -> dict[str, str]:
    """Computes experiments side by side; returns {experiment: why it failed}."""
    if not names:
        return {}
    plans = {name: read_plan(name) for name in names}
    failed: dict[str, str] = {}
    with (
        ProgressDisplay(len(names)) as display,
        _executor(plans.values(), jobs, cluster, display) as executor,
    ):
        waiting = {executor.submit(plan, params.run_options(name)) for name, plan in plans.items()}
        while waiting:
            # With a time-out, since a signal that another thread gets does not end this thread's
            # wait: the system chooses another one where this is stopped by Ctrl-Z.
            done, waiting = wait(waiting, 1, FIRST_COMPLETED)
            for outcome in (future.result() for future in done):
                if outcome.error:
                    display.print(f"{outcome.experiment} failed: {outcome.error}")
                    failed[outcome.experiment] = outcome.error
                    record_failure(outcome.experiment, outcome.error)
                else:
                    commits.add(outcome.experiment)
                display.finish(outcome.experiment, failed=bool(outcome.error))
            if waiting:
                commits.make_if_due()
    return failed


def _executor(
    plans: Collection[Plan],
    jobs: int | None,
    cluster: ClusterOptions | None,
    display: ProgressDisplay,
) -> Executor:
    if cluster is not None:
        display.print(f"{counted(len(plans), 'experiment')} to compute")
        return RayExecutor(cluster, display, jobs)
    workers = min(jobs or count_workers(plans), len(plans))
    display.print(f"{counted(len(plans), 'experiment')} to compute, {workers} at a time")
    return LocalExecutor(workers, max(1, count_cores() // workers), display)
