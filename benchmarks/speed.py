"""Measures the pipeline's speed and memory against a plain script and the hardware's limit.

    python -m benchmarks.speed --help

Writes ``benchmarks/results/benchmarks.json`` and, as tables, ``benchmarks.md``; on a CUDA GPU
``benchmarks-gpu``, on a CPU that does not multiply bfloat16 ``benchmarks-float32``. Alternatives
run in turns in one process; memory is measured in a process for each of them. A part that is not
measured keeps its earlier figures, and so do the parts loss-… at other sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.loss import SETTINGS, loss
from benchmarks.memory import run_memory
from benchmarks.overhead import overhead
from benchmarks.picture import picture
from benchmarks.problems import (
    KIND,
    PRODUCT_OPERATIONS,
    Problem,
    in_turns,
    operations,
    peak_bytes,
    precisions,
)
from benchmarks.repro import REPOSITORY, whole_pipeline
from benchmarks.scaling import scaling
from benchmarks.tables import tables
from benchmarks.threads import threads
from pipeline.errors import command_line
from pipeline.files import write_json, write_text
from pipeline.losses.objective import Objective
from pipeline.records.provenance import package_versions
from pipeline.runtime.device import find_precision

RESULTS = REPOSITORY / "benchmarks" / "results" / f"benchmarks{KIND}.json"
TABLES = RESULTS.with_suffix(".md")
PYTHON = sys.executable, "-W", "ignore"
SIZES = {256: 7, 512: 7, 1024: 3, 2048: 1}
"""Long edges, and how often an evaluation is timed there; pictures are 4:3."""
RUN_SIZES = 256, 512, 1024, 1536, 2048
"""Long edges of the part run, the first three for VGG-19 too; pictures are 3:2."""


def evaluation(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures seconds of an evaluation, beside the rate of a matrix product in the same type."""
    rows = []
    for edge, rounds in SIZES.items():
        problem = Problem(arguments.weights, edge)
        runs = problem.evaluations()
        types = {"float32": torch.float32, "bf16": torch.bfloat16}
        products = {name: dtype for name, dtype in types.items() if name in runs}
        for name, dtype in products.items():
            runs[f"product {name}"] = problem.products(dtype)
        medians = in_turns(runs, rounds)
        limits = {
            name: operations(problem.size) * medians[f"product {name}"] / PRODUCT_OPERATIONS
            for name in products
        }
        rows.append({"size": f"{problem.size[1]}×{problem.size[0]}", "limits": limits, **medians})
    return rows


def memory(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures how much evaluations raise a process's peak memory, in a process for each."""
    rows = []
    for edge in SIZES:
        row: dict[str, Any] = {"size": f"{edge}×{edge * 3 // 4}"}
        for name in ("plain float32", *precisions()):
            if torch.cuda.is_available():  # torch counts the GPU's memory by itself
                row[name] = peak(name, edge, arguments.weights)
                continue
            command = [*PYTHON, "-m", "benchmarks.speed", "--peak", name, str(edge)]
            command += ["--weights", arguments.weights] if arguments.weights else []
            row[name] = float(subprocess.run(command, capture_output=True, check=True).stdout)
        rows.append(row)
    return rows


def peak(name: str, edge: int, weights: str | None) -> float:
    """Returns the MiB by which two evaluations raise this process's peak memory."""
    problem = Problem(weights, edge)
    run = problem.evaluations()[name]

    def twice() -> None:
        run()
        run()

    return peak_bytes(twice) / 2**20


def whole_run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures the peak memory of whole runs of both networks, and the runs' own estimate."""
    weights = str(Path(arguments.weights).resolve()) if arguments.weights else "imagenet"
    vgg19 = {"architecture": "vgg19", "weights": weights}
    return run_memory(RUN_SIZES, "vgg19-small", {}) + run_memory(RUN_SIZES[:3], "vgg19", vgg19)


def startup(arguments: argparse.Namespace) -> dict[str, float]:
    """Measures the seconds of imports: of Lightning, of an experiment, of the stage fetch."""
    codes = {
        "lightning": "import lightning.pytorch",
        "stylize": "import pipeline.stages.stylize, wandb",
        "fetch": "import pipeline.stages.fetch",
    }
    runs: dict[str, Callable[[], object]] = {
        name: lambda code=code: subprocess.run(  # type: ignore[misc]
            [*PYTHON, "-c", code], check=True
        )
        for name, code in codes.items()
    }
    return in_turns(runs, arguments.rounds)


def deterministic(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measures seconds of an evaluation by either network, with and without deterministic mode."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch refuses without it
    problem = Problem(arguments.weights, min(SIZES))
    precision = find_precision("auto", problem.device)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    medians = {}
    for network in ("vgg", "small"):
        objective = problem.ours(precision, network)

        def evaluate(mode: bool, objective: Objective = objective) -> None:
            torch.use_deterministic_algorithms(mode)
            problem.gradient(lambda image: objective(image)["total"])

        runs = {"free": partial(evaluate, False), "deterministic": partial(evaluate, True)}
        medians[network] = in_turns(runs, 15)
    torch.use_deterministic_algorithms(False)
    return medians


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "evaluation": evaluation,
    "deterministic": deterministic,
    "threads": threads,
    "memory": memory,
    "run": whole_run,
    "overhead": overhead,
    "startup": startup,
    "pipeline": whole_pipeline,
    "scaling": scaling,
    "loss-content": partial(loss, "content"),
    "loss-noise": partial(loss, "noise"),
}
if torch.cuda.is_available():
    PARTS |= {"picture": picture}


def main() -> None:
    arguments = _arguments()
    if arguments.peak:
        name, edge = arguments.peak
        print(peak(name, int(edge), arguments.weights))
        return
    for part in arguments.parts:
        print(f"{part} …", flush=True)
        key = f"{part}-{arguments.size}" if part.startswith("loss") else part
        row = {"hardware": hardware(), "result": PARTS[part](arguments)}
        # Read again: another process may have written other parts in the meantime.
        results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
        results[key] = row
        write_json(RESULTS, results)
        write_text(TABLES, tables(results, KIND))
    print(TABLES.read_text("utf-8"))


def hardware() -> dict[str, Any]:
    abilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    device = abilities.get("cpu_name") or platform.processor() or platform.machine()
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": package_versions()["torch"],
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", help="a file of VGG-19's weights (default: torchvision's)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--size", type=int, default=512, help="long edge for the parts loss-…")
    parser.add_argument(
        "--settings",
        nargs="+",
        choices=SETTINGS,
        default=list(SETTINGS),
        help="of the parts loss-…",
    )
    parser.add_argument("--rounds", type=int, default=5, help="of the parts startup and pipeline")
    parser.add_argument("--peak", nargs=2, metavar=("NAME", "SIZE"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    command_line(main)
