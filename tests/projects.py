"""A copy of the project that a test may run DVC in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uncomputed_run
import yaml
from conftest import copy_of_repository, tiny_params

TEMPLATES = TemporaryDirectory(ignore_cleanup_errors=True)
Change = Callable[[dict[str, Any]], object]


class Project:
    """A copy of the project in a repository of its own, with tiny experiments."""

    def __init__(self, folder: Path, params: dict[str, Any]) -> None:
        self.folder, self.params = folder, params

    @classmethod
    def new(cls, folder: Path, params: dict[str, Any], computing: bool = True) -> Project:
        """Returns a project with nothing computed.

        With ``computing`` false, its experiments are those of ``uncomputed_run``.
        """
        project = cls(folder, params)
        copy_of_repository(folder)
        if not computing:
            _leave_out_the_computation(folder)
        project.change(lambda _: None)
        project.run("git", "init", "--quiet")
        project.dvc("init", "--quiet")
        return project

    @classmethod
    def prepared(cls, folder: Path, params: dict[str, Any], computing: bool = True) -> Project:
        """Returns a project whose pictures and network are there, with other parameters since."""
        shutil.copytree(_prepared_once(), folder, symlinks=True, dirs_exist_ok=True)
        if not computing:
            _leave_out_the_computation(folder)
        project = cls(folder, params)
        project.change(lambda _: None)
        return project

    def clone(self, folder: Path) -> Project:
        self.run("git", "clone", "--quiet", ".", str(folder))
        return Project(folder, self.params)

    def change(self, change: Change) -> None:
        """Writes params.yaml after a change; the plans are DVC's to write."""
        change(self.params)
        text = yaml.safe_dump(self.params)
        (self.folder / "params.yaml").write_text(text, encoding="utf-8")

    def commit(self) -> None:
        author = "-c", "user.name=tests", "-c", "user.email=tests@localhost"
        self.run("git", "add", "--all")
        self.run("git", *author, "commit", "--quiet", "--message", "a state to compare with")

    def dvc(self, *arguments: str, check: bool = True) -> str:
        return self.python("dvc", *arguments, check=check)

    def python(self, module: str, *arguments: str, check: bool = True) -> str:
        """Returns what a module prints; it ends well, unless it is not to be checked."""
        return self.run(sys.executable, "-m", module, *arguments, check=check)

    def repro(self) -> set[str]:
        """Returns the stages that ran."""
        return set(re.findall(r"Running stage '([^']+)'", self.dvc("repro")))

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "true",
            "WANDB_MODE": "disabled",
        }

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout + done.stderr


def small_params() -> dict[str, Any]:
    """Returns ``tiny_params`` with the embedded network, and without W&B."""
    params: dict[str, Any] = tiny_params(Path())
    params["backbone"] |= {"architecture": "vgg19-small", "weights": "embedded"}
    params["tracking"] = {"mode": "disabled"}
    return params


@cache
def _prepared_once() -> Path:
    """Makes once what ``Project.prepared`` copies: the first stages take many seconds."""
    project = Project.new(Path(TEMPLATES.name) / "prepared", small_params())
    project.dvc("repro", "backbone")
    return project.folder


def _leave_out_the_computation(folder: Path) -> None:
    """Puts ``uncomputed_run`` in the place of what computes an experiment.

    It keeps the imports, never executed, which the hash of the code follows.
    """
    file = folder / "pipeline/experiments/run.py"
    lines = file.read_text("utf-8").splitlines()
    imports = [f"    {line}\n" for line in lines if line.startswith("from pipeline")]
    text = Path(uncomputed_run.__file__).read_text("utf-8")
    text += f"\n\ndef _imports() -> None:\n{''.join(imports)}"
    file.write_text(text, encoding="utf-8")
