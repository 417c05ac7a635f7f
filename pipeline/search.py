"""The search for the image: all stages of a run, from its start or from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from pipeline import paths
from pipeline.checkpoints import Checkpoints
from pipeline.errors import UserError
from pipeline.images import to_picture, to_tensor
from pipeline.module import StyleTransfer
from pipeline.objective import Objective
from pipeline.precision import Precision
from pipeline.problem import Inputs, build_module, build_objective
from pipeline.resuming import Keeping, put_back, write_back
from pipeline.schema import Experiment
from pipeline.training import fit


class Stage(NamedTuple):
    """A part of a run: its name in the history, its network's file, its evaluations."""

    name: str
    network: Path
    evaluations: int


class Found(NamedTuple):
    """What a run came to.

    Attributes:
        module: with the image.
        objective: in float32, to judge it by.
        counts: of evaluations and iterations.
    """

    module: StyleTransfer
    objective: Objective
    counts: dict[str, int]


def search(
    name: str,
    settings: Experiment,
    inputs: Inputs,
    *,
    device: torch.device,
    precision: Precision,
    logger: Logger,
    checkpoints: Checkpoints,
    every: float,
) -> Found:
    """Optimises the image through all stages of the run, from a checkpoint where there is one.

    Args:
        name, settings, inputs: of the experiment.
        device, precision: where the network computes, and in what.
        logger: gets every evaluation.
        checkpoints: of this run; one is written each ``every`` seconds.

    Raises:
        UserError: the run diverged, or the image did not move.
        SystemExit: 143 after SIGTERM, 130 after an interrupt.
    """
    folder = paths.EXPERIMENTS / name
    start, before, stages = inputs.start, 0, _stages(settings)
    kept = checkpoints.load()
    if kept is not None:
        write_back(kept.files, folder)
        start, before = kept.state["start"], kept.state["before"]
        stages = stages[[stage.name for stage in stages].index(kept.state["stage"]) :]
        print(f"{name}: goes on after evaluation {before + kept.state['counts']['evaluations']}")
    for stage in stages:
        build = partial(build_objective, settings, stage.network, inputs, device)
        exact: Callable[[], Objective] = cache(partial(build, "float32"))
        using = kept.state["precision"] if kept else precision
        module = build_module(exact() if using == "float32" else build(using), settings, start)
        if kept is not None:
            put_back(module, kept.state)
        if module.evaluations < stage.evaluations:
            fit(
                module,
                name=name if stage.name == "main" else f"{name}, {stage.name}",
                folder=folder,
                evaluations=stage.evaluations,
                intermediates=settings.intermediates,
                logger=logger,
                deterministic=settings.deterministic,
                stage=stage.name,
                before=before,
                exact=exact,
                refinement=kept.state["refinement"] if kept else None,
                callbacks=[Keeping(checkpoints, every, start, folder)],
            )
        module.to(device)
        _refuse_unmoved(module, start)
        start, kept = module.image.detach(), None
        warm, before = before, before + module.evaluations
    return Found(module, exact(), _counts(module, warm))


def _counts(module: StyleTransfer, warm: int) -> dict[str, int]:
    return {
        "warm_evaluations": warm,
        "evaluations": module.evaluations,
        "float32_evaluations": module.exact_evaluations,
        "iterations": module.iterations,
    }


def _stages(settings: Experiment) -> list[Stage]:
    stages = [Stage("main", paths.WEIGHTS_FILE, settings.evaluations)]
    if settings.warm_start:
        stages.insert(0, Stage("warm_start", paths.EMBEDDED_FILE, settings.warm_evaluations))
    return stages


def _refuse_unmoved(module: StyleTransfer, start: Tensor) -> None:
    if torch.equal(to_tensor(to_picture(module.image)), to_tensor(to_picture(start))):
        raise UserError(
            "the image did not move: every pixel has its value of the start. Give it more "
            "evaluations, a larger first_step, or weights that are not 0"
        )
