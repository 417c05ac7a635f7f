"""Asks DVC which experiments are out of date, and restores and commits their results.

DVC's command line reads and writes all of dvc.lock for each stage, which takes longer than many an
experiment. These are the calls of `dvc repro` and `dvc commit --force`, for all stages at once.
"""

import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any


def run_dvc(*arguments: str) -> int:
    """Runs a command of DVC and returns its exit status."""
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], check=False).returncode


def outdated_experiments() -> set[str]:
    """Returns the experiments that `dvc repro` would compute, for lack of results of their plan."""
    with _stages() as stages:
        return {name for name, stage in stages.items() if stage.changed()}


def restore_experiments(names: Collection[str]) -> set[str]:
    """Restores results from DVC's run cache; returns the experiments that have theirs now."""
    from dvc.stage.cache import RunCacheNotFoundError

    restored = set()
    with _stages() as stages:
        for name in names:
            with suppress(RunCacheNotFoundError):
                stages[name].repo.stage_cache.restore(stages[name])
                restored.add(name)
    return restored


def commit_experiments(names: Collection[str]) -> None:
    """Has DVC accept results as those of their plans: its lock and caches as after `dvc repro`."""
    if not names:
        return
    with _stages() as stages:
        finished = [stages[name] for name in names]
        for stage in finished:
            stage.save()
            stage.commit()
        finished[0].dvcfile.dump_stages(finished, update_pipeline=False)


@contextmanager
def _stages() -> Iterator[dict[str, Any]]:
    """Yields {experiment: its stage}, while no other process may use DVC here."""
    from dvc.repo import Repo

    with Repo() as repo, repo.lock:
        yield {
            stage.addressing.partition("@")[2]: stage
            for stage in repo.index.stages
            if stage.addressing.startswith("stylize@")
        }
