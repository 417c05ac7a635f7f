"""What produced a picture: git revision, package versions, settings and inputs."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline import __version__

PACKAGES = ("torch", "torchvision", "lightning", "numpy", "pillow", "safetensors", "wandb", "dvc")


@cache
def code_version() -> dict[str, Any]:
    """Returns the git revision, and whether tracked files differ from it; None without git.

    Changes of DVC's lock files do not count: DVC rewrites them while it runs. A process asks git
    once, since the code that it runs does not change.
    """
    changes = _git("status", "--porcelain", "-uno", "--", ".", ":!*dvc.lock")
    return {
        "version": __version__,
        "revision": _git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
    }


@cache
def package_versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed packages that can change a picture."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def settings_text(
    name: str, settings: Mapping[str, Any], inputs: Mapping[str, str]
) -> dict[str, str]:
    """Returns the text chunks of a result's PNG: what it takes to make the picture again."""
    return {
        "Software": f"style-transfer-pipeline {__version__}",
        "Experiment": name,
        "Settings": json.dumps(settings, sort_keys=True),
        "Inputs": json.dumps(inputs, sort_keys=True),
    }


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
