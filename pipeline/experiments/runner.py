"""Brings all experiments of params.yaml up to date: `python -m pipeline run`.

Plain `dvc repro` comes to the same, one experiment after another.
"""

import signal
import sys
from concurrent.futures import as_completed

from pipeline.config.params import PARAMS_FILE, read_params
from pipeline.config.plan import read_plan, write_plans
from pipeline.config.schema import Params
from pipeline.errors import UserError
from pipeline.experiments import dvc_stages
from pipeline.experiments.executor import LocalExecutor, count_cores, count_workers
from pipeline.experiments.progress import ProgressDisplay
from pipeline.experiments.results import has_current_results
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
    params = read_params()
    print(f"{PARAMS_FILE}: {len(params.experiments)} experiments", flush=True)
    planned = _prepare(params)
    changed = dvc_stages.outdated_experiments()
    outdated = [name for name in planned if name in changed]
    missing = [name for name in outdated if not has_current_results(name)]
    restored = dvc_stages.restore_experiments(missing)
    failed = _compute([name for name in missing if name not in restored], params, jobs)
    dvc_stages.commit_experiments([name for name in outdated if name not in failed])
    reasons = [f"{name}: {reason}" for name, reason in failed.items()]
    if len(planned) < len(params.experiments):
        reasons.append("the pictures named above are missing")
    if reasons:
        dvc_stages.run_dvc("repro", "--quiet", "--single-item", "report")
        raise UserError("\n".join(["not everything was computed", *reasons]))
    if status := dvc_stages.run_dvc("repro"):
        sys.exit(status)


def _prepare(params: Params) -> list[str]:
    """Fetches pictures, writes plans and prepares the network; returns the planned experiments."""
    if dvc_stages.run_dvc("repro", "--quiet", "backbone") == 0:
        return list(params.experiments)
    planned = write_plans(params, skip_missing=True)
    if not planned or dvc_stages.run_dvc("repro", "--quiet", "--single-item", "backbone"):
        raise UserError("nothing was computed: the reason stands above")
    return planned


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
        futures = [executor.submit(plan, params.run_options(name)) for name, plan in plans.items()]
        for future in as_completed(futures):
            outcome = future.result()
            if outcome.error:
                display.print(f"{outcome.experiment} failed: {outcome.error}")
                failed[outcome.experiment] = outcome.error
                record_failure(outcome.experiment, outcome.error)
            display.finish(outcome.experiment)
    return failed
