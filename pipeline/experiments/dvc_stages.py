"""Runs DVC's stages, and finds, restores and commits results of experiments, by its Python API.

DVC's command line reads and writes all of dvc.lock for each stage, which takes longer than many an
experiment. These are the calls of `dvc repro` and `dvc commit --force`, for all stages at once.
"""

import re
import shutil
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import UserError
from pipeline.experiments.results import LOCK_FILE
from pipeline.files import replacing
from pipeline.records.locks import sole_run

Answer = TypeVar("Answer")


def reproduce(*targets: str, single_item: bool = False) -> None:
    """Brings stages up to date as `dvc repro` does, by default all of them.

    Raises:
        UserError: a stage failed, after it has printed why, or DVC did.
    """
    _ask_dvc(lambda repo: repo.reproduce(targets=list(targets), single_item=single_item))


def outdated_experiments() -> dict[str, bool]:
    """Returns {experiment that `dvc repro` would compute: whether only its files have changed}.

    Such files were removed, damaged or edited since DVC accepted them as the results of the plan.
    """
    return _ask_dvc(
        lambda repo: {
            name: not stage.changed_deps()
            for name, stage in _stages(repo).items()
            if stage.changed()
        }
    )


def restore_experiments(names: Collection[str]) -> set[str]:
    """Restores results from DVC's run cache; returns the experiments that have theirs now."""
    from dvc.stage.cache import RunCacheNotFoundError

    def restore(repo: Any) -> set[str]:
        stages, restored = _stages(repo), set[str]()
        for name in names:
            with suppress(RunCacheNotFoundError, UserError), sole_run(name):
                stages[name].remove_outs()
                repo.stage_cache.restore(stages[name])
                restored.add(name)
        return restored

    return _ask_dvc(restore)


def commit_experiments(names: Collection[str]) -> None:
    """Has DVC accept results as those of their plans: dvc.lock and caches as after `dvc repro`."""

    from dvc.stage.serialize import to_lockfile
    from dvc.utils.serialize import modify_yaml

    def commit(repo: Any) -> None:
        stages = _stages(repo)
        # In the order of dvc.yaml, whatever ended first.
        finished = [stage for name, stage in stages.items() if name in names]
        for stage in finished:
            stage.save()
            stage.commit()
        # DVC empties dvc.lock before it writes it, which a runner that is killed must not leave.
        with replacing(LOCK_FILE) as lock:
            shutil.copyfile(LOCK_FILE, lock)  # it has the stages before
            with modify_yaml(str(lock)) as content:
                for stage in finished:
                    content["stages"].update(to_lockfile(stage))

    if names:
        _ask_dvc(commit)


def _stages(repo: Any) -> dict[str, Any]:
    """Returns {experiment: its stage}."""
    return {
        stage.addressing.partition("@")[2]: stage
        for stage in repo.index.stages
        if stage.addressing.startswith("stylize@")
    }


def _ask_dvc(question: Callable[[Any], Answer]) -> Answer:
    """Returns an answer of DVC's repository; waits while another process has it locked.

    Raises:
        UserError: DVC refuses.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    waiting = False
    while True:
        answer: Future[Answer] = Future()
        # Not in the main thread, where DVC would ignore an interrupt while a stage runs.
        threading.Thread(target=_answer, args=(question, answer), daemon=True).start()
        while not answer.done():
            wait([answer], 1)  # with a time-out, as in the runner
        try:
            return answer.result()
        except DvcException as error:
            causes: list[BaseException] = [error]
            while cause := causes[-1].__cause__:
                causes.append(cause)
            if not isinstance(causes[-1], LockError):
                raise UserError(f"DVC: {': '.join(map(str, causes))}") from error
        if not waiting:
            holders = re.findall(r"PID (\d+)", str(causes[-1])) or _holder_of_repository()
            print(
                f"DVC is in use here by process {', '.join(holders)}: waits for its end", flush=True
            )
            waiting = True
        time.sleep(0.5)


def _answer(question: Callable[[Any], Answer], answer: Future[Answer]) -> None:
    from dvc.repo import Repo, lock_repo

    try:
        with Repo() as repo, lock_repo(repo):
            answer.set_result(question(repo))
    except BaseException as error:  # noqa: BLE001 - the main thread raises it
        answer.set_exception(error)


def _holder_of_repository() -> list[str]:
    with suppress(OSError):
        return Path(".dvc", "tmp", "lock").read_text("utf-8").split()
    return ["unknown"]
