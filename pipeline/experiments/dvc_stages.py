"""What DVC knows of the experiments' stages: which are up to date, and which its cache holds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence


def run_dvc(*arguments: str) -> int:
    """Runs a command of DVC and returns its exit status."""
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], check=False).returncode


def outdated_experiments() -> set[str]:
    """Returns the experiments whose stage DVC would run: new ones, and those with changed plans."""
    from dvc.repo import Repo

    with Repo() as repo, repo.lock:
        return {
            stage.addressing.partition("@")[2]
            for stage in repo.index.stages
            if stage.addressing.startswith("stylize@") and stage.changed()
        }


def restore_experiments(names: Iterable[str]) -> list[str]:
    """Checks out the outputs of earlier runs that DVC's run cache holds for the present plans.

    A setting that was changed and changed back needs no computation. DVC's command line offers
    this only as a part of `dvc repro`, which would compute the others one after another.

    Args:
        names: experiments whose stage is outdated.

    Returns:
        The experiments that have their outputs now.
    """
    from dvc.repo import Repo
    from dvc.stage.cache import RunCacheNotFoundError

    restored = []
    with Repo() as repo, repo.lock:
        stages = {stage.addressing: stage for stage in repo.index.stages}
        for name in names:
            stage = stages[f"stylize@{name}"]
            try:
                repo.stage_cache.restore(stage)
            except RunCacheNotFoundError:
                continue
            restored.append(name)
    return restored


def commit_experiments(names: Sequence[str]) -> int:
    """Has DVC take the outputs of experiments as those of their plans; returns its exit status.

    dvc.lock and DVC's caches are then as `dvc repro` would have left them.
    """
    if not names:
        return 0
    return run_dvc("commit", "--quiet", "--force", *(f"stylize@{name}" for name in names))
