"""Experiments that run as one batch, ahead of their cells.

DVC asks for one cell at a time. `make repro` tells each of its processes on a GPU which experiments
are its own (``plans.TOGETHER``), and the first to run has those like it run along: each gets a
checkpoint, as if its run had been stopped at the end, and its cell goes on from there.

An experiment with ``deterministic: true`` keeps to itself. It promises the same bits whenever it is
run, and rounding depends on the company.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from pipeline import paths
from pipeline.batch import Member, fit_together
from pipeline.checkpoints import sole_run
from pipeline.errors import UserError
from pipeline.frozen import FrozenFeatures
from pipeline.memory import available, estimate
from pipeline.params import find_experiment
from pipeline.plans import TOGETHER
from pipeline.precision import Precision
from pipeline.problem import build_module, load_features, objective_by, read_inputs
from pipeline.resources import SHARING, demands, sizes
from pipeline.resuming import Keeping
from pipeline.runs import Run, identify
from pipeline.schema import Params
from pipeline.search import build_course
from pipeline.training import watchers

MOST = 16
"""Members of a batch, at most."""


def run_together(first: Run, params: Params) -> None:
    """Runs an experiment and those like it as one batch, and leaves their checkpoints.

    Does nothing where none was asked for, or where the experiment has no company or a checkpoint.
    What hinders the others, or the batch, hinders nobody from running alone.

    Args:
        first: is being run; what else is being run is left alone.
        params: with all experiments.

    Raises:
        SystemExit: 143 after SIGTERM, 130 after an interrupt.
    """
    names = os.environ.get(TOGETHER, "").split()
    if first.name not in names:
        return
    later = names[names.index(first.name) + 1 :]  # the others have been run
    if _kind(first) is None or first.checkpoints.exist():
        return
    room = available(first.device) // SHARING
    with ExitStack() as held, tempfile.TemporaryDirectory() as folder:
        runs = [first]
        for run in _others_like(first, later, params):
            if len(runs) < MOST and _needed([*runs, run]) <= room:
                with suppress(UserError):  # somebody else is running it
                    held.enter_context(sole_run(run.name))
                    runs.append(run)
        if len(runs) > 1:
            print(f"{first.name}: together with {', '.join(run.name for run in runs[1:])}")
            try:
                _run_batch(runs, Path(folder), params.checkpoints.every)
            except (RuntimeError, OSError) as error:  # of the memory, above all
                print(f"not together, but one after another: {error}")
            gc.collect()  # a module and its trainer hold each other
            if first.device.type == "cuda":
                torch.cuda.empty_cache()


def _others_like(first: Run, names: Sequence[str], params: Params) -> Iterator[Run]:
    kind = _kind(first)
    for name in names:
        try:
            run = identify(name, find_experiment(params, name))
            alike = _kind(run) == kind
        except (UserError, OSError):  # its own cell will say
            continue
        if alike and not run.checkpoints.exist():
            yield run


def _kind(run: Run) -> tuple[Any, ...] | None:
    """Returns what all of a batch have in common; None for a run that keeps to itself."""
    settings = run.settings
    if settings.deterministic or settings.lbfgs.line_search_fn:
        return None
    if settings.warm_start or settings.schedule != "plain":
        return None
    size, _ = sizes(settings)
    layers = tuple(settings.content_layers), tuple(settings.style_layers)
    where = run.device, run.precision, settings.threads
    lbfgs = settings.lbfgs, settings.first_step, settings.largest_step
    return *where, size, *layers, settings.convention, *lbfgs


def _needed(runs: Sequence[Run]) -> int:
    """Returns the bytes of a batch: as if each had a network to itself."""
    each = [max(map(estimate, demands(run.settings, run.device, run.precision))) for run in runs]
    return len(runs) * max(each)


def _run_batch(runs: list[Run], folder: Path, every: float) -> None:
    first = runs[0]
    load = partial(load_features, first.settings, paths.WEIGHTS_FILE, first.device)
    features: Callable[[Precision], FrozenFeatures] = cache(load)
    members = []
    for run in runs:
        with suppress(UserError):  # its own cell will say
            members.append(_member(run, features, folder / run.name, every))
    fit_together(members, max(run.settings.evaluations for run in runs))


def _member(
    run: Run, features: Callable[[Precision], FrozenFeatures], folder: Path, every: float
) -> Member:
    settings, inputs = run.settings, read_inputs(run.settings)
    objective = objective_by(features(run.precision), settings, inputs)
    watching = watchers(
        folder,
        settings.evaluations,
        settings.intermediates,
        build_course(settings),
        exact=lambda: objective_by(features("float32"), settings, inputs),
    )
    module = build_module(objective, settings, inputs.start)
    return Member(module, watching, Keeping(run.checkpoints, every, inputs.start, folder))
