"""Measures the peak memory of whole runs, and compares it with the estimate they make before."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
HISTORY = 5
"""History size of L-BFGS; the runs are long enough to fill it."""
EXPECTED = """
import sys, psutil, torch, wandb
import pipeline.stages.stylize
from pipeline.config.params import read_params
from pipeline.runtime.device import find_device
from pipeline.transfer.memory import demands, estimate
name = sys.argv[1]
settings = read_params().experiments[name]
here = 0 if torch.cuda.is_available() else psutil.Process().memory_info().rss
device = find_device(settings.device)
print(here + max(map(estimate, demands(settings, device, settings.precision))))
"""
MEASURED = """
import resource, subprocess, sys
command = [sys.executable, "-W", "ignore", "-m", "pipeline.stages.stylize", sys.argv[1]]
subprocess.run(command, check=True, capture_output=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""
MEASURED_ON_A_GPU = """
import sys, torch
from pipeline.stages.stylize import stylize
stylize(sys.argv[1])
print(torch.cuda.max_memory_reserved())
"""


def run_memory(
    sizes: Sequence[int], network: str, backbone: dict[str, str]
) -> list[dict[str, Any]]:
    """Measures runs of every size and precision, in a folder of their own.

    Args:
        sizes: long edges in pixels.
        network: shown in the table.
        backbone: keys of the section ``backbone`` of params.yaml.
    """
    rows = []
    measured = MEASURED_ON_A_GPU if torch.cuda.is_available() else MEASURED
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for precision in ("float32", "bf16"):
            _prepare(sizes, backbone, precision)
            for size in sizes:
                row = {"network": network, "precision": precision, "size": size}
                row["expected"] = _answer(EXPECTED, f"at{size}")
                row["measured"] = _answer(measured, f"at{size}")
                print(row, flush=True)
                rows.append(row)
    return rows


def _prepare(sizes: Sequence[int], backbone: dict[str, str], precision: str) -> None:
    params: dict[str, Any] = yaml.safe_load((REPOSITORY / "params.yaml").read_text("utf-8"))
    params["backbone"] |= backbone
    params["defaults"] |= {
        "lbfgs": {"history_size": HISTORY},
        "evaluations": HISTORY + 3,
        "precision": precision,
        "init": "content",
    }
    params["experiments"] = {
        f"at{size}": {"content": "chelsea", "style": "gravel", "size": size} for size in sizes
    }
    params |= {"figures": {}, "cast": {}, "tracking": {"mode": "offline"}}
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    _run("-m", "pipeline.stages.fetch")
    _run("-m", "pipeline.stages.plan")
    _run("-m", "pipeline.stages.backbone")


def _answer(code: str, name: str) -> int:
    return int(_run("-c", code, name).split()[-1])


def _run(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-W", "ignore", *arguments]
    answer = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return answer.stdout
