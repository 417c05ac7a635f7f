"""What produced a picture: git revision, package versions, settings and inputs."""

import json
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline import __version__

PACKAGES = ("torch", "torchvision", "lightning", "numpy", "pillow", "safetensors")


@cache
def code_version() -> dict[str, Any]:
    """Returns the git revision, and whether tracked files differ from it; None without git."""
    # Without DVC's lock files, which DVC rewrites while it runs.
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
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def provenance(
    experiment: str, description: Mapping[str, Any], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what provenance.json holds: all that decides a result, and nothing else.

    DVC compares that file. Equal results in another clone, at another git revision or with another
    number of threads must be equal files: these are in the config of the W&B run.
    """
    decisive = {key: value for key, value in environment.items() if key != "threads"}
    return {"experiment": experiment, "version": __version__, **description, **decisive}


def settings_text(experiment: str, description: dict[str, Any]) -> dict[str, str]:
    """Returns the text chunks of a result's PNG: what it takes to make the picture again."""
    return {
        "Software": f"style-transfer-pipeline {__version__}",
        "Experiment": experiment,
        "Settings": json.dumps(description["settings"], sort_keys=True),
        "Inputs": json.dumps(description["inputs"], sort_keys=True),
    }


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
