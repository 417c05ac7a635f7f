"""Checks that results are bit-identical with 1 to 4 threads, and measures each one's speed."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.problems import Problem, precisions, seconds
from pipeline.losses.objective import Objective
from pipeline.transfer.module import StyleTransfer

THREADS = 1, 2, 3, 4
STEPS = {"small": 40, "vgg": 10}
SIZE, RANGE_WEIGHT = 256, 1000.0


def threads(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs L-BFGS with each number of threads; compares its results, and measures its time."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    problem, before = Problem(arguments.weights, SIZE), torch.get_num_threads()
    rows = []
    for network in STEPS:
        for precision in precisions():
            objective = problem.ours(precision, network, RANGE_WEIGHT)
            runs: dict[int, tuple[Tensor, float]] = {}
            for count in THREADS:
                torch.set_num_threads(count)
                runs[count] = _run(objective, problem.content / 2, STEPS[network])
            first = runs[THREADS[0]][0]
            rows.append(
                {
                    "network": network,
                    "precision": precision,
                    "steps": STEPS[network],
                    "same": all(torch.equal(first, other) for other, _ in runs.values()),
                    "seconds": {str(count): spent for count, (_, spent) in runs.items()},
                }
            )
            print(rows[-1], flush=True)
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)
    return rows


def _run(objective: Objective, start: Tensor, steps: int) -> tuple[Tensor, float]:
    """Returns image, gradient and losses after the steps, as one tensor, and their seconds."""
    module = StyleTransfer(objective, start, {"scaling": "mean"})
    optimizer = module.configure_optimizers()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = module.training_step(None, 0)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    step = partial(optimizer.step, closure)
    step()  # warms up
    spent = seconds(lambda: [step() for _ in range(steps)])
    losses = torch.stack(list(module.losses.values()))
    return torch.cat([module.image.detach().flatten(), module.gradient.flatten(), losses]), spent
