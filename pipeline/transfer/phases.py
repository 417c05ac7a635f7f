"""The search for the image: all stages of a run, from its start or from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from pipeline import paths
from pipeline.config.schema import Experiment
from pipeline.errors import UserError
from pipeline.imaging.tensors import enlarge, to_picture, to_tensor
from pipeline.losses.objective import Objective
from pipeline.records.identity import Run
from pipeline.transfer.build import (
    DAMPING,
    Inputs,
    build_module,
    build_objective,
    read_inputs,
    sizes,
)
from pipeline.transfer.callbacks import log_again
from pipeline.transfer.checkpointing import Keeping, put_back, write_back
from pipeline.transfer.convergence import EXPLODED, Course, DivergedError, End
from pipeline.transfer.fit import fit
from pipeline.transfer.module import StyleTransfer

COARSE = {"quarter": 4, "half": 2}
"""Stages of the schedule ``coarse_to_fine``, and what they divide the full size by."""
LEAST_EDGE = 32
"""Pixels of a coarse stage's short edge: below it the deepest layers have nothing left to see."""


class Stage(NamedTuple):
    """A part of a run: a network and a budget at a size.

    Attributes:
        name: in the history.
        network: the file of weights.
        evaluations: the budget.
        division: of the full size's edges.
    """

    name: str
    network: Path
    evaluations: int
    division: int = 1


class Found(NamedTuple):
    """What a run came to.

    Attributes:
        module: with the image.
        objective: in float32, to judge it by.
        counts: of evaluations and iterations.
        end: why its main stage ended.
        notes: what else happened on the way, a sentence each.
    """

    module: StyleTransfer
    objective: Objective
    counts: dict[str, int]
    end: End
    notes: list[str]


class Search:
    """A run: through all its stages, from its start or from a checkpoint.

    Args:
        run: which.
        inputs: of its experiment.
        logger: gets every evaluation.
        every: seconds from one checkpoint to the next.
    """

    def __init__(self, run: Run, inputs: Inputs, logger: Logger, every: float) -> None:
        self.name, self.settings, self.inputs = run.name, run.settings, inputs
        self.device, self.precision, self.logger = run.device, run.precision, logger
        self.checkpoints, self.every = run.checkpoints, every
        self.folder = paths.EXPERIMENTS / run.name
        self.start, self.before, self.notes = inputs.start, 0, list[str]()

    def run(self) -> Found:
        """Optimises the image through all stages, and returns what it came to.

        Raises:
            UserError: the loss is no number at the start, or the image did not move.
            SystemExit: 143 after SIGTERM, 130 after an interrupt.
        """
        stages = _stages(self.settings)
        kept = self.checkpoints.load()
        if kept is not None:
            write_back(kept.files, self.folder)
            log_again(self.logger, self.folder)
            state = kept.state
            self.start, self.before, self.notes = state["start"], state["before"], state["notes"]
            stages = stages[[stage.name for stage in stages].index(state["stage"]) :]
            done = self.before + state["counts"]["evaluations"]
            print(f"{self.name}: goes on after evaluation {done}")
        for stage in stages:
            inputs = self._inputs(stage)
            if kept is None:
                size = inputs.start.shape[-2:]
                self.start = enlarge(self.start, size) if self.before else inputs.start
            module, exact, end = self._pursue(stage, inputs, kept.state if kept else None)
            if end.kind != "divergence":
                _refuse_unmoved(module, self.start, end)
            if stage.name != "main" and end.kind != "budget":
                self.notes.append(f"The stage {stage.name} ended by {end.kind}: {end.reason}")
            self.start, kept = module.image.detach(), None
            earlier, self.before = self.before, self.before + module.evaluations
        counts = {"earlier_evaluations": earlier, **_counts(module)}
        return Found(module, exact(), counts, end, self.notes)

    def _inputs(self, stage: Stage) -> Inputs:
        return self.inputs if stage.division == 1 else read_inputs(self.settings, stage.division)

    def _pursue(
        self, stage: Stage, inputs: Inputs, state: dict[str, Any] | None
    ) -> tuple[StyleTransfer, Callable[[], Objective], End]:
        """Runs a stage, after a divergence a second time; returns the module with the image."""
        build = partial(build_objective, self.settings, stage.network, inputs, self.device)
        exact: Callable[[], Objective] = cache(partial(build, "float32"))
        using = state["precision"] if state else self.precision
        objective = exact() if using == "float32" else build(using)
        course = build_course(self.settings, state["course"] if state else None)
        module = build_module(objective, self.settings, self.start, course.damped)
        if state is not None:
            put_back(module, state)
        ordinary = End("budget", f"all {stage.evaluations} evaluations were used")
        left: End | None = None
        while module.evaluations < stage.evaluations and not course.is_over(module):
            try:
                self._fit(module, stage, course, exact, state)
                left = None
                break
            except DivergedError as error:
                left = self._restore(module, course, str(error))
            if course.damped or module.evaluations >= stage.evaluations:
                break
            module, state = self._damped(module, course), None
        left = left or self._last_look(module.to(self.device), course, exact())
        return module, exact, left or course.end or ordinary

    def _fit(
        self,
        module: StyleTransfer,
        stage: Stage,
        course: Course,
        exact: Callable[[], Objective],
        state: dict[str, Any] | None,
    ) -> None:
        fit(
            module,
            name=self.name if stage.name == "main" else f"{self.name}, {stage.name}",
            folder=self.folder,
            evaluations=stage.evaluations,
            intermediates=self.settings.intermediates,
            course=course,
            logger=self.logger,
            deterministic=self.settings.deterministic,
            stage=stage.name,
            before=self.before,
            exact=exact,
            refinement=state["refinement"] if state else None,
            callbacks=[Keeping(self.checkpoints, self.every, self.start, self.folder, self.notes)],
        )

    def _restore(self, module: StyleTransfer, course: Course, reason: str) -> End:
        """Gives the module the best image there was."""
        if course.best is None or not course.sound:
            raise UserError(
                f"{reason}, which is the start itself: there is nothing to go on from. Lower "
                "content_weight and style_weight, or look for what is wrong with the weights"
            )
        module.to(self.device).image = course.best.to(self.device)
        return End("divergence", f"{reason}; the picture is the best there was")

    def _last_look(self, module: StyleTransfer, course: Course, exact: Objective) -> End | None:
        """Puts the best image in the place of one that the last step, unseen, has spoilt."""
        with torch.no_grad():
            total = float(exact(module.image)["total"])
        if math.isfinite(total) and not total > EXPLODED * course.first > 0:
            return None
        return self._restore(module, course, f"the total loss is {total:.3g} after the last step")

    def _damped(self, module: StyleTransfer, course: Course) -> StyleTransfer:
        """Returns a module that goes on from the best image, by smaller steps."""
        self.notes.append(
            f"Diverged ({course.diverged}): went on from the best image, with lbfgs.lr and "
            f"largest_step times {DAMPING:g}"
        )
        print(f"{self.name}: {self.notes[-1]}")
        course.damped, course.diverged, course.end = True, "", None
        damped = build_module(module.objective, self.settings, module.image.detach(), damped=True)
        damped.counts = module.counts
        return damped


def build_course(settings: Experiment, state: Mapping[str, Any] | None = None) -> Course:
    """Returns what watches over an experiment, as it was where there is a state of it."""
    stop = settings.early_stop
    return Course((stop.evaluations, stop.gain) if stop else None, state)


def _counts(module: StyleTransfer) -> dict[str, int]:
    return {
        "evaluations": module.evaluations,
        "float32_evaluations": module.exact_evaluations,
        "iterations": module.iterations,
    }


def _stages(settings: Experiment) -> list[Stage]:
    """Returns the stages of a run: what is coarse, a warm start, and ``main``."""
    stages = []
    first = paths.EMBEDDED_FILE if settings.warm_start else paths.WEIGHTS_FILE
    if settings.schedule == "coarse_to_fine":
        stages = [
            Stage(name, first, settings.coarse_evaluations, division)
            for name, division in COARSE.items()
            if min(sizes(settings, division)[0]) >= LEAST_EDGE
        ]
    if settings.warm_start:
        stages.append(Stage("warm_start", first, settings.warm_evaluations))
    return [*stages, Stage("main", paths.WEIGHTS_FILE, settings.evaluations)]


def _refuse_unmoved(module: StyleTransfer, start: Tensor, end: End) -> None:
    if torch.equal(to_tensor(to_picture(module.image)), to_tensor(to_picture(start))):
        why = f" ({end.reason})" if end.kind == "standstill" else ""
        raise UserError(
            f"the image did not move: every pixel has its value of the start{why}. Give it more "
            "evaluations, a larger first_step, tolerances of 0, or weights that are not 0"
        )
