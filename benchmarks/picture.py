"""Measures whole runs on a GPU, and the share of L-BFGS in them."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.problems import (
    PRODUCT_OPERATIONS,
    Problem,
    in_turns,
    operations,
    precisions,
    seconds,
)
from pipeline.losses.evaluator import RecordedObjective, fastest_evaluation
from pipeline.optim.lbfgs import LBFGS
from pipeline.runtime.precision import Precision
from pipeline.transfer.callbacks import History
from pipeline.transfer.convergence import Convergence
from pipeline.transfer.module import StyleTransfer, fit

EVALUATIONS, EDGES, STEPS = 500, (512, 1024), 100
"""Evaluations of a picture; its (square) edges in pixels; steps of L-BFGS when timed alone."""


def picture(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures two runs in a row from the content image, with a history of 20."""
    rows = []
    for edge in EDGES:
        problem = Problem(arguments.weights, edge, height=edge)
        product = in_turns({"product": problem.products(torch.bfloat16)}, 7)["product"]
        limit = operations(problem.size) * product / PRODUCT_OPERATIONS
        for precision in precisions()[1:]:  # float32 takes minutes
            first, second = (_run(problem, precision) for _ in range(2))
            rows.append(
                {
                    "size": f"{edge}×{edge}",
                    "precision": precision,
                    "first_s": first,
                    "run_s": second,
                    "evaluation_s": _evaluations(problem, precision) / EVALUATIONS,
                    "lbfgs_s": _steps(problem) / STEPS,
                    "limit_s": limit,
                }
            )
            print(rows[-1], flush=True)
    return rows


def _run(problem: Problem, precision: Precision) -> float:
    module = StyleTransfer(problem.ours(precision), problem.content, {"history_size": 20})
    with tempfile.TemporaryDirectory() as name:

        def whole() -> None:
            convergence = Convergence(EVALUATIONS)
            fit(module, [History(Path(name), convergence), convergence], EVALUATIONS)
            problem.wait()

        return seconds(whole)


def _evaluations(problem: Problem, precision: Precision) -> float:
    evaluate = fastest_evaluation(problem.ours(precision), problem.content)
    assert isinstance(evaluate, RecordedObjective), "evaluated without a CUDA graph"
    image = problem.content.clone().requires_grad_()

    def all_of_them() -> None:
        for _ in range(EVALUATIONS):
            torch.autograd.grad(evaluate(image)["total"], image)
        problem.wait()

    return seconds(all_of_them)


def _steps(problem: Problem) -> float:
    """Returns the seconds of L-BFGS's steps on a quadratic, which costs almost nothing."""
    point = problem.content.clone().requires_grad_()
    optimizer = LBFGS(point, history_size=20)
    # Curvatures so different that no step reaches the minimum, where L-BFGS would stand still.
    slopes = torch.logspace(-4, 0, point.numel(), device=point.device).view_as(point)

    def closure() -> torch.Tensor:
        point.grad = slopes * point.detach()
        return point.grad.sum()

    def all_of_them() -> None:
        for _ in range(STEPS):
            optimizer.step(closure)
        problem.wait()

    all_of_them()
    spent = seconds(all_of_them)
    assert not optimizer.reason_not_moved, optimizer.reason_not_moved
    return spent
