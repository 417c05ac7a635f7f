"""Brings all experiments of params.yaml up to date: `python -m pipeline run`.

Plain `dvc repro` comes to the same, one experiment after another.
"""

import signal
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline import paths
from pipeline.config.grids import update_cells_file
from pipeline.config.params import PARAMS_FILE, read_params
from pipeline.config.plan import read_plan, write_plans
from pipeline.config.schema import Params
from pipeline.errors import UserError
from pipeline.experiments import dvc_stages
from pipeline.experiments.executor import LocalExecutor, count_cores, count_workers
from pipeline.experiments.progress import ProgressDisplay
from pipeline.experiments.results import has_current_results
from pipeline.files import read_json
from pipeline.records.locks import HeldError, hold
from pipeline.records.status import record_failure


def run(jobs: int | None = None) -> None:
    """Computes what is out of date, and writes the report.

    Experiments whose pictures cannot be fetched and those that fail do not keep the others from
    being computed. Both make this raise, after the report was written. ``jobs`` run at a time, by
    default one for each core as far as the memory goes.

    Raises:
        UserError: a mistake in params.yaml, or experiments without results, each with its reason.
        SystemExit: 130 after an interrupt, 143 after SIGTERM; what was running has a checkpoint.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with _sole_runner():
        _run(jobs)


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


def _run(jobs: int | None) -> None:
    params = read_params()
    print(f"{PARAMS_FILE}: {len(params.experiments)} experiments", flush=True)
    update_cells_file(params)  # before DVC reads it
    planned = _prepare(params)
    changed = dvc_stages.outdated_experiments()
    outdated = [name for name in planned if name in changed]
    missing = [name for name in outdated if changed[name] or not has_current_results(name)]
    restored = dvc_stages.restore_experiments(missing)
    failed = _compute([name for name in missing if name not in restored], params, jobs)
    dvc_stages.commit_experiments([name for name in outdated if name not in failed])
    reasons = [f"{name}: {reason}" for name, reason in failed.items()]
    if len(planned) < len(params.experiments):
        reasons.append("the pictures named above are missing")
    if not reasons:
        dvc_stages.reproduce()
        return
    try:
        dvc_stages.reproduce("report", single_item=True)
    except UserError as error:
        reasons.append(str(error))
    raise UserError("\n".join(["not everything was computed", *reasons]))


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


def _compute(names: list[str], params: Params, jobs: int | None) -> dict[str, str]:
    """Computes experiments side by side; returns {experiment: why it failed}."""
    if not names:
        return {}
    plans = {name: read_plan(name) for name in names}
    workers = min(jobs or count_workers(plans.values()), len(names))
    threads = max(1, count_cores() // workers)
    failed: dict[str, str] = {}
    print(f"{len(names)} experiments to compute, {workers} at a time", flush=True)
    with (
        ProgressDisplay(len(names)) as display,
        LocalExecutor(workers, threads, display) as executor,
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
                display.finish(outcome.experiment)
    return failed
