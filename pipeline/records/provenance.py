"""What produced a picture: code, parameters, inputs, versions, device."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.files import sha256

PACKAGES = ("torch", "torchvision", "lightning", "numpy", "pillow", "safetensors", "wandb", "dvc")


def code_version() -> dict[str, Any]:
    """Returns the git revision and whether tracked files differ from it; None where git is absent.

    DVC's lock files do not count: DVC rewrites them while it runs.
    """
    changes = _git("status", "--porcelain", "-uno", "--", ".", ":!*dvc.lock")
    return {
        "version": __version__,
        "revision": _git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
    }


def loaded_code() -> str:
    """Returns the hash of the files of this package that this process has imported."""
    files = {
        str(module.__file__)
        for module in list(sys.modules.values())
        if (getattr(module, "__package__", None) or "").partition(".")[0] == "pipeline"
    }
    hashes = "".join(sha256(Path(file)) for file in sorted(files))
    return hashlib.sha256(hashes.encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that can change a picture."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def settings_text(
    name: str, settings: Mapping[str, Any], inputs: Mapping[str, str]
) -> dict[str, str]:
    """Returns the PNG text of a result: what it takes to make it again, not when or where."""
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
