"""What a batch of experiments gains over one after another."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.problems import Problem, seconds
from pipeline.batch import Member, fit_together
from pipeline.checkpoints import Checkpoints
from pipeline.images import white_noise
from pipeline.module import StyleTransfer
from pipeline.objective import Objective
from pipeline.precision import fastest_precision
from pipeline.resuming import Keeping
from pipeline.schema import Checkpointing
from pipeline.training import fit, watchers

EVALUATIONS, EDGES, COUNTS = 200, (256, 512), (4, 16)
"""Of each experiment; long edges of the pictures; members of a batch."""
INTERMEDIATES = 1, 10, 25, 50, 100, 200


def batch(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures seconds a picture from noise, alone and in batches; each after one like it."""
    rows = []
    for edge in EDGES:
        problem = Problem(arguments.weights, edge)
        objective = problem.ours(fastest_precision(problem.device))
        row: dict[str, Any] = {"size": f"{problem.size[1]}×{problem.size[0]}"}
        row["alone"] = _second(problem, partial(_alone, problem, objective))
        for count in COUNTS:
            together = partial(_together, problem, objective, count)
            row[str(count)] = _second(problem, together) / count
        rows.append(row)
        print(row, flush=True)
    return rows


def _second(problem: Problem, run: Callable[[], object]) -> float:
    def whole() -> None:
        with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
            run()
            problem.wait()

    whole()
    return seconds(whole)


def _alone(problem: Problem, objective: Objective) -> None:
    module = _module(problem, objective, 0)
    fit(
        module,
        name="alone",
        folder=Path("0"),
        evaluations=EVALUATIONS,
        intermediates=INTERMEDIATES,
        deterministic=False,
        exact=lambda: objective,
        callbacks=[_keeping(module, 0)],
    )


def _together(problem: Problem, objective: Objective, count: int) -> None:
    members = []
    for seed in range(count):
        module = _module(problem, objective, seed)
        watching = watchers(Path(str(seed)), EVALUATIONS, INTERMEDIATES, exact=lambda: objective)
        members.append(Member(module, watching, _keeping(module, seed)))
    fit_together(members, EVALUATIONS)


def _module(problem: Problem, objective: Objective, seed: int) -> StyleTransfer:
    height, width = problem.size
    start = white_noise((height, width), seed, 0.1)
    return StyleTransfer(objective, start, {"history_size": 20, "scaling": "mean"})


def _keeping(module: StyleTransfer, seed: int) -> Keeping:
    checkpoints = Checkpoints(f"run{seed}", 16 * "0")
    return Keeping(checkpoints, Checkpointing().every, module.evaluated, Path(str(seed)))
