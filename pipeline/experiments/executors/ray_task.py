"""The task that a Ray worker runs: one experiment, in a temporary folder of its own.

A worker needs the installed package, and neither DVC's repository nor params.yaml: the plan comes
with the task, pictures and network are objects of the cluster, and results go back as files.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline import paths
from pipeline.config.code_hash import code_hash
from pipeline.config.plan import EXPERIMENT_CODE, Plan
from pipeline.config.schema import RunOptions
from pipeline.experiments.executors.executor import Begun, LineStream, Message, Outcome, compute

if TYPE_CHECKING:
    from ray import ObjectRef

CHECKPOINTS = Path("data/checkpoints")
INTERRUPTED = 130
"""The exit status of a run that the command has cancelled."""


class Task(NamedTuple):
    """An experiment, and what a worker needs for it.

    Attributes:
        inputs: {path in the workspace: the bytes of the file, as an object of the cluster}.
        checkpoints: the folder that all nodes see, or None.
        root: the workspace of the command, which gets the files of the W&B run.
        command: ``sys.orig_argv`` and ``sys.argv`` of the command, for W&B.
    """

    plan: Plan
    options: RunOptions
    inputs: dict[str, ObjectRef[bytes]]
    checkpoints: Path | None
    root: Path
    command: tuple[list[str], list[str]]


class Result(NamedTuple):
    """How an experiment ended, and {path in the workspace: content} of its results and W&B run."""

    outcome: Outcome
    files: dict[str, bytes]


class Mailbox:
    """An actor that keeps what the experiments report until the command takes it."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, Message]] = []

    def put(self, experiment: str, message: Message) -> None:
        self._messages.append((experiment, message))

    def flush(self) -> None:
        """Ends when all that its caller put before has arrived."""

    def take(self) -> list[tuple[str, Message]]:
        taken, self._messages = self._messages, []
        return taken


def run_task(task: Task, mailbox: Any) -> Result:
    """Computes an experiment on a worker; ``mailbox`` is the handle of a ``Mailbox``."""
    import ray

    name, root = task.plan.experiment, str(task.root)
    if _own_code() != task.plan.code:  # a node that joined later; the others were asked
        reason = f"Node {socket.gethostname()} has another version of this package"
        return Result(Outcome(name, f"{reason}. Install the same version there"), {})
    # As many threads whatever the worker computed before; an experiment may ask for more.
    os.environ["OMP_NUM_THREADS"] = "1"
    # Of the process that started Ray, perhaps on another machine; this one starts its own.
    os.environ.pop("WANDB_SERVICE", None)
    sys.orig_argv, sys.argv = task.command
    with _workspace(task):
        here = str(Path.cwd())

        def send(message: Message) -> None:
            if isinstance(message, str):  # such as the command that uploads a W&B run
                message = message.replace(here, root)
            mailbox.put.remote(name, message)

        send(Begun(socket.gethostname()))
        lines = LineStream(send)
        with contextlib.redirect_stdout(lines), contextlib.redirect_stderr(lines):
            try:
                outcome = compute(task.plan, task.options, send)
            except SystemExit as end:
                if end.code != INTERRUPTED:  # the node is stopped: Ray tries another one
                    raise
                outcome = Outcome(name, "It was interrupted.")
        folders = [*Path("wandb").glob("*run-*")]  # offline, or online and not wholly uploaded
        folders += [] if outcome.error else [paths.EXPERIMENTS / name]
        files = {
            file.as_posix(): file.read_bytes()
            for folder in folders
            for file in folder.rglob("*")
            if file.is_file()
        }
        ray.get(mailbox.flush.remote())
    return Result(outcome, files)


@cache
def _own_code() -> str:
    return code_hash(EXPERIMENT_CODE)


@contextlib.contextmanager
def _workspace(task: Task) -> Iterator[None]:
    """Works in a temporary folder with the inputs of an experiment, where its stages leave them."""
    import ray

    environment = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="style-transfer-") as folder, contextlib.chdir(folder):
        contents = ray.get(list(task.inputs.values()))
        for path, content in zip(map(Path, task.inputs), contents, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if task.checkpoints is not None:
            CHECKPOINTS.symlink_to(task.checkpoints, target_is_directory=True)
        try:
            yield
        finally:  # W&B's variables name this folder
            os.environ.clear()
            os.environ.update(environment)
