"""A copy of the project that a test may run DVC in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from conftest import copy_of_repository

Change = Callable[[dict[str, Any]], object]


class Project:
    """A copy of the project in a repository of its own, with tiny experiments."""

    def __init__(self, folder: Path, params: dict[str, Any]) -> None:
        self.folder, self.params = folder, params

    @classmethod
    def new(cls, folder: Path, params: dict[str, Any]) -> Project:
        project = cls(folder, params)
        copy_of_repository(folder)
        project.change(lambda _: None)
        project._run("git", "init", "--quiet")
        project.dvc("init", "--quiet")
        return project

    def clone(self, folder: Path) -> Project:
        self._run("git", "clone", "--quiet", ".", str(folder))
        return Project(folder, self.params)

    def change(self, change: Change) -> None:
        """Writes params.yaml after a change; the plans are DVC's to write."""
        change(self.params)
        text = yaml.safe_dump(self.params)
        (self.folder / "params.yaml").write_text(text, encoding="utf-8")

    def commit(self) -> None:
        author = "-c", "user.name=tests", "-c", "user.email=tests@localhost"
        self._run("git", "add", "--all")
        self._run("git", *author, "commit", "--quiet", "--message", "a state to compare with")

    def dvc(self, *arguments: str, check: bool = True) -> str:
        return self.python("dvc", *arguments, check=check)

    def python(self, module: str, *arguments: str, check: bool = True) -> str:
        """Returns what a module prints; it ends well, unless it is not to be checked."""
        return self._run(sys.executable, "-m", module, *arguments, check=check)

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

    def _run(self, *command: str, check: bool = True) -> str:
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
