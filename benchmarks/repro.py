"""Times `make repro` from nothing, of one or several checkouts of the project in turns.

    python -m benchmarks.repro BEFORE AFTER --rounds 3

Each run works in a fresh clone of a checkout's latest commit, with the environment that the
checkout has in ``.venv`` (without one: the environment of this process) and an offline W&B run for
each experiment. Beside the runs, the evaluations of the last clone's experiments are timed by
themselves, in as many processes: the least that such a run could take.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.problems import seconds
from pipeline import paths
from pipeline.config.plan import Plan
from pipeline.errors import command_line
from pipeline.experiments.executors.resources import count_cores
from pipeline.losses.evaluator import Evaluator
from pipeline.losses.objective import Objective
from pipeline.runtime.device import find_precision
from pipeline.runtime.precision import Precision
from pipeline.transfer.build import build_objective, read_inputs

REPOSITORY = Path(__file__).resolve().parent.parent
CHANGE = "fig4-1: {content: photograph, style: abstract, content_weight: 0.01}", "0.01", "0.02"
"""A line of params.yaml, and a value in it with its replacement."""
EXPERIMENT = "fig4-2"
WARM_UP, SAMPLE = 2, 20
"""Evaluations of an experiment before the timed ones, and timed."""


def whole_pipeline(arguments: argparse.Namespace) -> dict[str, float]:
    """Measures `make repro`, `dvc repro` and one experiment, in clones of the latest commit."""
    with cloned(REPOSITORY) as clone:
        result = {"make repro, from nothing": make_repro(clone, REPOSITORY)}
    with cloned(REPOSITORY) as clone:
        result["dvc repro, from nothing"] = dvc_repro(clone, REPOSITORY)
        result["dvc repro, nothing changed"] = dvc_repro(clone, REPOSITORY)
        _change(clone / "params.yaml", *CHANGE)
        result["dvc repro, one experiment changed"] = dvc_repro(clone, REPOSITORY)
        command = "python", "-W", "ignore", "-m", "pipeline.stages.stylize", EXPERIMENT
        rounds = [run_seconds(clone, REPOSITORY, *command) for _ in range(arguments.rounds)]
        result["one experiment"] = statistics.median(rounds)
    return result


@contextmanager
def cloned(checkout: Path) -> Iterator[Path]:
    """Yields a clone of a checkout's latest commit, in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "clone"
        subprocess.run(["git", "clone", "--quiet", checkout, clone], check=True)
        yield clone


def make_repro(clone: Path, checkout: Path, jobs: int | None = None) -> float:
    """Returns the seconds of `make repro` in a clone; nothing is installed."""
    venv = _environment(checkout)
    options = [f"VENV={venv}", f"--assume-old={venv}/installed"]
    options += [f"JOBS={jobs}"] if jobs else []
    return run_seconds(clone, checkout, "make", "repro", *options)


def dvc_repro(clone: Path, checkout: Path) -> float:
    """Returns the seconds of plain `dvc repro` in a clone."""
    return run_seconds(clone, checkout, "python", "-m", "dvc", "repro")


def run_seconds(clone: Path, checkout: Path, *command: str) -> float:
    """Returns the seconds of a command in a clone, with the programs of a checkout's environment.

    Raises:
        CalledProcessError: the command failed; what it printed is in the message.
    """
    path = os.pathsep.join([str(_environment(checkout) / "bin"), os.environ.get("PATH", "")])
    modules = os.pathsep.join(filter(None, [str(clone), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "PATH": path, "PYTHONPATH": modules, "WANDB_MODE": "offline"}

    def run() -> None:
        done = subprocess.run(
            command, cwd=clone, env=variables, capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(done.stdout, done.stderr, file=sys.stderr)
        done.check_returncode()

    return seconds(run)


def evaluations_alone(clone: Path, processes: int) -> float:
    """Returns the seconds that the evaluations of a clone's finished experiments take alone.

    Worker processes, each with its share of the cores, evaluate the loss and its gradient of every
    experiment ``SAMPLE`` times. The mean time of an evaluation, multiplied by the number of
    evaluations that the experiment had, is summed over the experiments and divided among the
    processes. Evaluations of coarse stages and warm starts count as evaluations of the main stage.
    """
    names = sorted(file.parent.name for file in clone.glob("data/experiments/*/metrics.json"))
    context = multiprocessing.get_context("spawn")
    arguments = clone, max(1, count_cores() // processes)
    with context.Pool(processes, _start_worker, arguments) as pool:
        return sum(pool.map(_seconds_of_evaluations, names, chunksize=1)) / processes


def _start_worker(clone: Path, threads: int) -> None:
    os.chdir(clone)
    torch.set_num_threads(threads)


def _seconds_of_evaluations(experiment: str) -> float:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = Plan.model_validate_json((paths.PLANS / f"{experiment}.json").read_bytes()).settings
    made = json.loads((paths.EXPERIMENTS / experiment / "status.json").read_bytes())["counts"]
    counts: dict[Precision, int] = {"float32": made["float32_evaluations"]}
    first = find_precision(settings.precision, device)
    others = made["earlier_evaluations"] + made["evaluations"] - counts["float32"]
    counts[first] = counts.get(first, 0) + others
    inputs = read_inputs(settings)
    spent = 0.0
    for precision, count in counts.items():
        if count:
            objective = build_objective(settings, paths.WEIGHTS_FILE, inputs, device, precision)
            spent += count * _seconds_of_one(objective, inputs.start.to(device))
    return spent


def _seconds_of_one(objective: Objective, start: Tensor) -> float:
    image, evaluate = start.clone().requires_grad_(), Evaluator()

    def evaluations(number: int) -> None:
        for _ in range(number):
            torch.autograd.grad(evaluate(objective, image)["total"], image)
        if image.is_cuda:
            torch.cuda.synchronize()

    evaluations(WARM_UP)
    return seconds(lambda: evaluations(SAMPLE)) / SAMPLE


def _change(file: Path, line: str, old: str, new: str) -> None:
    text = file.read_text("utf-8")
    assert line in text, f"{file} has no {line!r}"
    file.write_text(text.replace(line, line.replace(old, new)), "utf-8")


def _environment(checkout: Path) -> Path:
    venv = checkout / ".venv"
    return venv if venv.is_dir() else Path(sys.prefix)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkouts", nargs="*", type=Path, default=[REPOSITORY])
    parser.add_argument("--rounds", type=int, default=1, help="runs of each checkout")
    parser.add_argument("--jobs", type=int, help="experiments at a time (default: make's own)")
    parser.add_argument("--dvc", action="store_true", help="time plain `dvc repro` instead")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    checkouts = [folder.resolve() for folder in arguments.checkouts]
    spent: dict[Path, list[float]] = {checkout: [] for checkout in checkouts}
    alone = 0.0
    for number in range(arguments.rounds):
        for checkout in checkouts:
            with cloned(checkout) as clone:
                if arguments.dvc:
                    spent[checkout].append(dvc_repro(clone, checkout))
                else:
                    spent[checkout].append(make_repro(clone, checkout, arguments.jobs))
                print(f"round {number + 1}: {checkout}: {spent[checkout][-1]:.1f} s", flush=True)
                if number == arguments.rounds - 1 and checkout == checkouts[-1]:
                    processes = 1 if arguments.dvc else arguments.jobs or count_cores()
                    alone = evaluations_alone(clone, processes)
    medians = {checkout: statistics.median(times) for checkout, times in spent.items()}
    for checkout, median in medians.items():
        print(f"{checkout}: {median:.1f} s, {median / medians[checkouts[0]]:.2f} of the first")
    last = medians[checkouts[-1]]
    print(f"the evaluations alone: {alone:.1f} s; the last checkout takes {last / alone:.2f} times")


if __name__ == "__main__":
    command_line(main)
