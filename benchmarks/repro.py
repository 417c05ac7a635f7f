"""How long the pipeline as a whole takes, from nothing and after a change."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.problems import seconds

REPOSITORY = Path(__file__).resolve().parent.parent
CHANGE = "fig4-1: {content: *photograph, style: *abstract, content_weight: 0.01}", "0.01", "0.02"
"""An experiment's line in params.yaml, and what is changed in it."""
CELL = "fig4-2"


def whole_pipeline(arguments: argparse.Namespace) -> dict[str, float]:
    """Measures `dvc repro` in a clone of the latest commit, and one cell started by itself."""
    with tempfile.TemporaryDirectory() as name:
        clone, other = Path(name) / "clone", Path(name) / "other"
        for folder in (clone, other):
            subprocess.run(["git", "clone", "--quiet", REPOSITORY, folder], check=True)
        found = {
            "cold, an experiment on each core": _run(other, "pipeline.experiments.runner"),
            "cold": _run(clone, "dvc", "repro"),
            "unchanged": _run(clone, "dvc", "repro"),
        }
        _change(clone / "params.yaml", *CHANGE)
        found["one experiment changed"] = _run(clone, "dvc", "repro")
        cell = [_run(clone, "pipeline.stages.stylize", CELL) for _ in range(arguments.rounds)]
        return {**found, "one cell": statistics.median(cell)}


def _run(clone: Path, module: str, *arguments: str) -> float:
    """Returns the seconds of a command, with this process's environment but for its folder."""
    binaries = Path(sys.executable).parent  # the commands in dvc.yaml say `python`
    path = os.pathsep.join([str(binaries), os.environ.get("PATH", "")])
    settings = {**os.environ, "PATH": path, "PYTHONPATH": str(clone), "WANDB_MODE": "offline"}
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    return seconds(
        lambda: subprocess.run(command, cwd=clone, env=settings, check=True, capture_output=True)
    )


def _change(file: Path, line: str, old: str, new: str) -> None:
    text = file.read_text("utf-8")
    assert line in text, f"{file} has no {line!r}"
    file.write_text(text.replace(line, line.replace(old, new)), "utf-8")
