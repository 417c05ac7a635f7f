"""Measures what tiles and a rounded history of L-BFGS cost and save, in time, memory and loss.

    python -m benchmarks.tiles --help

Writes ``benchmarks/results/tiles.json``, with the suffix of ``benchmarks.speed`` for other kinds of
machines. Alternatives run in turns in one process; memory is measured in a process for each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.problems import KIND, TERMS, Problem, in_turns, peak_bytes, precisions
from benchmarks.repro import REPOSITORY
from benchmarks.speed import hardware
from pipeline.errors import command_line
from pipeline.files import write_json
from pipeline.imaging.tensors import white_noise
from pipeline.losses import make_terms
from pipeline.losses.objective import MINIMISED, Objective
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.optim.image_variable import to_image, to_variable, variable_scale
from pipeline.optim.lbfgs import LBFGS
from pipeline.runtime.process_group import ALONE, process_group

RESULTS = REPOSITORY / "benchmarks" / "results" / f"tiles{KIND}.json"
NETWORKS = "small", "vgg"
TILES = None, 512, 256
COST_EDGES = {1024: 3, 2048: 1}
"""Edges of square images, and how often an evaluation is timed there."""
MEMORY_EDGES = 1024, 2048, 4096
LARGE_EDGE = 8192
DEVICES_EDGE, DEVICES_TILE = 2048, 512
HISTORY_EDGE, HISTORY_EVALUATIONS, RANGE_WEIGHT = 256, (25, 50, 100, 200), 1000.0


def cost(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures the seconds of an evaluation, whole and in tiles."""
    rows = []
    for edge, rounds in COST_EDGES.items():
        problem = Problem(arguments.weights, edge, edge)
        for network in NETWORKS:
            for precision in precisions():
                runs: dict[str, Callable[[], object]] = {}
                for tile in TILES:
                    objective = problem.ours(precision, network, tile=tile)
                    runs[str(tile)] = partial(problem.gradient, partial(_total, objective))
                row = {"edge": edge, "network": network, "precision": precision}
                rows.append({**row, "seconds": in_turns(runs, rounds)})
                print(rows[-1], flush=True)
    return rows


def _total(objective: Objective, image: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = objective(image)["total"]
    return total


def memory(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures the peak memory of targets and an evaluation, whole and in tiles."""
    rows = []
    for network in NETWORKS:
        for precision in precisions():
            # float32 takes long at the largest.
            for edge in MEMORY_EDGES[: 3 if precision == precisions()[-1] else 2]:
                for tile in (None, 512) if edge <= 2048 else (512,):
                    rows.append(_in_a_process(arguments, network, precision, edge, tile))
    return rows


def large(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures one evaluation of a very large image by VGG-19."""
    return [_in_a_process(arguments, "vgg", precisions()[-1], LARGE_EDGE, 1024)]


def _in_a_process(
    arguments: argparse.Namespace, network: str, precision: str, edge: int, tile: int | None
) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.tiles", "--weights"]
    command += [arguments.weights, "--peak", network, precision, str(edge), str(tile or 0)]
    answer = subprocess.run(command, capture_output=True, check=True, text=True, cwd=REPOSITORY)
    row: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    print(row, flush=True)
    return row


def peak(weights: str | None, network: str, precision: Any, edge: int, tile: int) -> dict[str, Any]:
    """Returns the bytes and seconds that a picture, its targets and an evaluation take."""
    problem = Problem(weights, 64, 64)
    features = FrozenFeatures(
        getattr(problem, network), "avg", precision, problem.device, tile or None
    )
    problem.size = edge, edge
    generator = torch.Generator(problem.device).manual_seed(0)
    noise = partial(torch.rand, (1, 3, edge, edge), generator=generator, device=problem.device)
    seconds, loss = 0.0, 0.0

    def run() -> None:
        nonlocal seconds, loss
        objective = Objective(features, make_terms(TERMS), {"content": noise(), "style": noise()})
        image = noise().requires_grad_()
        begin = time.perf_counter()
        losses = objective(image)
        losses[MINIMISED].backward()
        problem.wait()
        seconds, loss = time.perf_counter() - begin, float(losses["total"].detach())

    high = peak_bytes(run)
    row = {"network": network, "precision": precision, "edge": edge, "tile": tile or None}
    return {**row, "bytes": high, "seconds": seconds, "loss": loss}


def devices(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures an evaluation and a step in tiles, by one process and by several.

    On GPUs by one for each, and nothing where there is one; on a CPU by two, each with half of the
    threads.
    """
    if torch.cuda.device_count() == 1:
        return []
    rows, threads = [], torch.get_num_threads()
    problem = Problem(arguments.weights, DEVICES_EDGE, DEVICES_EDGE)
    count = max(2, torch.cuda.device_count())
    with process_group(count, problem.device) as group:
        for network in NETWORKS:
            for precision in precisions():
                runs: dict[str, Callable[[], object]] = {}
                for each in (ALONE, group):
                    objective = problem.ours(precision, network, tile=DEVICES_TILE, group=each)
                    own = max(1, threads // each.size) if problem.device.type == "cpu" else threads
                    variable = torch.nn.Parameter(problem.content.clone())
                    optimizer = LBFGS(variable, history_size=10, group=each)
                    runs[f"evaluation by {each.size}"] = partial(
                        _with_threads, own, partial(problem.gradient, partial(_total, objective))
                    )
                    variable.grad = torch.rand_like(variable)
                    runs[f"step by {each.size}"] = partial(
                        _with_threads, own, partial(optimizer.step, lambda: torch.ones(()))
                    )
                row = {"edge": DEVICES_EDGE, "tile": DEVICES_TILE, "network": network}
                rows.append({**row, "precision": precision, "seconds": in_turns(runs, 3)})
                print(rows[-1], flush=True)
    return rows


def _with_threads(threads: int, run: Callable[[], object]) -> None:
    torch.set_num_threads(threads)
    run()


def history(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Compares the loss after some evaluations with pairs of L-BFGS in float32 and in bfloat16."""
    problem, rows = Problem(arguments.weights, HISTORY_EDGE), []
    for network in NETWORKS:
        objective = problem.ours("float32", network, RANGE_WEIGHT)
        height, width = problem.size
        noise = white_noise((height, width), 0, 0.1).to(problem.device)
        for init, start in (("content", problem.content), ("noise", noise)):
            losses = {kind: _losses(objective, start, kind) for kind in ("float32", "bf16")}
            rows.append({"network": network, "init": init, "losses": losses})
            print(rows[-1], flush=True)
    return rows


def _losses(objective: Objective, start: torch.Tensor, precision: Any) -> dict[int, float]:
    scale = variable_scale(start, 1e-3)
    variable = torch.nn.Parameter(to_variable(start, scale))
    optimizer = LBFGS(variable, 0.1 * scale, scaling="mean", history_precision=precision)
    totals: list[float] = []

    def closure() -> torch.Tensor:
        variable.grad = None
        losses = objective(to_image(variable, scale))
        minimised: torch.Tensor = losses[MINIMISED]
        minimised.backward()  # type: ignore[no-untyped-call]
        totals.append(float(losses["total"].detach()))
        return minimised.detach()

    while len(totals) < max(HISTORY_EVALUATIONS):
        optimizer.step(closure)
    return {count: totals[count - 1] for count in HISTORY_EVALUATIONS}


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "cost": cost,
    "memory": memory,
    "large": large,
    "devices": devices,
    "history": history,
}


def main() -> None:
    arguments = _arguments()
    if arguments.peak:
        network, precision, edge, tile = arguments.peak
        print(json.dumps(peak(arguments.weights, network, precision, int(edge), int(tile))))
        return
    for part in arguments.parts:
        row = {"hardware": hardware(), "result": PARTS[part](arguments)}
        results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
        results[part] = row
        write_json(RESULTS, results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", required=True, help="a file of VGG-19's weights")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    command_line(main)
