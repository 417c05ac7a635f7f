"""The phases of a run: coarse sizes, a warm start, and the main optimisation."""

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from pipeline import paths
from pipeline.config.schema import Experiment
from pipeline.errors import UserError
from pipeline.imaging.tensors import to_picture, to_size
from pipeline.losses.objective import MINIMISED, Objective
from pipeline.records.identity import Run
from pipeline.runtime.process_group import ALONE, ProcessGroup
from pipeline.transfer.build import (
    Inputs,
    build_objective,
    developed,
    picture_size,
    read_inputs,
    sizes,
)
from pipeline.transfer.callbacks import History, Progress, Refinement, ReportProgress
from pipeline.transfer.checkpointing import Checkpointing, load_state, restore
from pipeline.transfer.convergence import Convergence, DivergedError, StopReason
from pipeline.transfer.module import RunState, StyleTransfer, fit

DAMPING = 0.1
"""What the step lengths are multiplied by in the second attempt, after a divergence."""
COARSE = {"quarter": 4, "half": 2}
"""Phases of the schedule ``coarse_to_fine``, and the divisors of the full size."""
MIN_COARSE_EDGE = 32
"""Pixels of the shortest edge below which a coarse phase is left out: the deepest layers would have
too few positions."""
LOSS_ROUNDING = 1e-5
"""Relative difference of two losses that rounding alone may make."""
SMALL_GAIN, LARGE_GAIN = 0.01, 0.1
"""A phase that takes less than the first off the loss has a note. The second tells it from others
even where the first loss was not computed in float32."""
SMALL_GRADIENT = 0.1
"""Share of the start's gradient below which a picture that is still the start is at a minimum."""


class Phase(NamedTuple):
    """A part of a run: ``size`` takes the place of the setting, if it is one."""

    name: str
    network: Path
    evaluations: int
    size: int | None = None


class Result(NamedTuple):
    """What a phase produced.

    The image is (1, 3, H, W) float32, RGB in [0, 1] but not clamped, on the run's device. The
    objective is in float32.
    """

    image: Tensor
    objective: Objective
    state: RunState
    stop_reason: StopReason


class PhasedRun:
    """A run through all phases of an experiment, from its start image or from a checkpoint.

    Args:
        every: the least time between two checkpoints, in seconds.
        tiles: {phase: the edge of its tiles}; a phase without is not tiled.
        group: the processes that compute the tiles.
    """

    def __init__(
        self,
        run: Run,
        logger: Logger,
        every: float,
        report: ReportProgress,
        tiles: Mapping[str, int | None] = MappingProxyType({}),
        group: ProcessGroup = ALONE,
    ) -> None:
        self.run, self.logger, self.every, self.report = run, logger, every, report
        self.tiles, self.group = tiles, group
        self.name, self.settings = run.plan.experiment, run.plan.settings
        self.folder = paths.EXPERIMENTS / self.name
        self.state = RunState(torch.empty(0))  # replaced by that of the first phase

    def optimise(self) -> Result:
        """Optimises the image through all phases, and returns the result of the last.

        Raises:
            UserError: the loss at the start is not finite, or the settings keep the image there.
            SystemExit: 143 after SIGTERM, 130 after an interrupt.
        """
        phases = phases_of(self.settings)
        saved = load_state(self.run.checkpoints, self.folder, self.logger, self.state.notes)
        if saved is not None:
            self.state = RunState(**saved["run"])
            print(f"{self.name}: goes on after evaluation {self.state.total_evaluations}")
            names = [phase.name for phase in phases]
            phases = phases[names.index(self.state.phase) :]
        result: Result | None = None
        for phase in phases:
            inputs = read_inputs(self.settings, phase.size)
            if saved is None:
                start, before = inputs.start, self.state
                # What fulfils the loss at a smaller size is blurred at this one.
                if result is not None and result.stop_reason.kind != "minimum":
                    start = to_size(result.image, start.shape[-2:])
                self.state = RunState(
                    start,
                    phase.name,
                    before.total_evaluations,
                    before.notes,
                    before.files,
                    tile=self.tiles.get(phase.name),
                )
                computed, devices = f"The phase {phase.name} was computed", self.group.size
                if self.state.tile:
                    by = f" by {devices} devices" if devices > 1 else ""
                    self.state.notes.append(f"{computed} in tiles of {self.state.tile} pixels{by}")
                elif devices > 1:
                    self.state.notes.append(
                        f"{computed} by one of {devices} devices: its image has no tile for each"
                    )
            result, saved = self._optimise_phase(phase, inputs, saved), None
            kind, reason = result.stop_reason
            if phase.name != "main" and kind != "budget":
                self.state.notes.append(f"The phase {phase.name} ended by {kind}: {reason}")
        assert result is not None
        return result

    def _optimise_phase(self, phase: Phase, inputs: Inputs, saved: dict[str, Any] | None) -> Result:
        """Runs a phase; a divergence makes it go on once from the best image by shorter steps."""
        device, settings, state = self.run.device, self.settings, self.state
        build = partial(
            build_objective,
            settings,
            phase.network,
            inputs,
            device,
            tile=state.tile,
            group=self.group,
        )
        exact: Callable[[], Objective] = cache(partial(build, "float32"))
        precision = saved["precision"] if saved else self.run.precision
        objective = exact() if precision == "float32" else build(precision)
        module = self._build_module(objective, state.start)
        convergence = Convergence(phase.evaluations, settings.early_stop)
        develop = partial(developed, content_image=inputs.content_image, settings=settings)
        history = History(self.folder, convergence, settings.intermediates, develop)
        refinement = Refinement(exact, history)
        title = self.name if phase.name == "main" else f"{self.name}, {phase.name}"
        callbacks = [
            history,
            convergence,
            refinement,
            Progress(self.report, title, phase.evaluations),
            Checkpointing(self.run.checkpoints, self.every, history),
        ]
        if saved is not None:
            restore(saved, module, callbacks)
        while not convergence.is_over(state):
            try:
                fit(module, callbacks, phase.evaluations, self.logger, settings.deterministic)
                break
            except DivergedError as error:
                diverged = StopReason("divergence", str(error))
            if convergence.best_image is None or not convergence.any_finite:
                raise UserError(
                    f"{diverged.reason}, which is the start itself: there is nothing to go on "
                    f"from. {convergence.remedy}"
                )
            if state.damped or state.evaluations >= phase.evaluations:
                convergence.stop_reason = diverged
                break
            state.notes.append(
                f"Diverged ({convergence.divergence}): went on from the best image, with lbfgs.lr "
                f"and largest_step times {DAMPING:g}"
            )
            print(f"{self.name}: {state.notes[-1]}")
            state.damped = True
            module = self._build_module(module.objective, convergence.best_image)
            convergence.restart()
            refinement.restart()
        if module.precision != "float32":
            convergence.change_precision(exact())
        return self._choose_result(phase, module.to(device).image.detach(), convergence, exact())

    def _choose_result(
        self, phase: Phase, last: Tensor, convergence: Convergence, objective: Objective
    ) -> Result:
        """Returns the better one of a phase's last image and its best one, by the float32 loss.

        No evaluation followed the last step. Notes a phase that hardly lowered the loss.

        Raises:
            UserError: the settings keep the image at its start.
        """
        state, best = self.state, convergence.best_image
        assert best is not None
        assert convergence.best_total is not None
        start = state.start.to(last)
        kind, reason = convergence.stop_reason or StopReason(
            "budget", f"all {phase.evaluations} evaluations were used"
        )
        if kind == "minimum":
            return Result(start, objective, state, StopReason(kind, reason))
        total, best_total = _total(objective, last), float(convergence.best_total)
        if kind != "divergence" and convergence.has_exploded(total):
            kind, reason = "divergence", f"the total loss is {total:.3g} after the last step"
        if _as_saved(last) == _as_saved(start):
            state.notes.append(_reason_for_no_change(objective, start, last, kind, reason))
        result = last
        if not total <= (1 + LOSS_ROUNDING) * best_total:
            result = best.to(last)
            choice = (
                f"the result is the image of evaluation {convergence.best_evaluation}, whose loss "
                f"is {best_total:.6g}, and not the last one, whose loss is {total:.6g}"
            )
            reason = f"{reason}; {choice}"
            state.notes.append(f"In the phase {phase.name} {choice}")
        lowest = min(total, best_total) if math.isfinite(total) else best_total
        if not lowest <= (1 - LARGE_GAIN) * convergence.first_total:
            first = _total(objective, start)
            if not lowest <= (1 - SMALL_GAIN) * first:
                state.notes.append(
                    f"The phase {phase.name} hardly lowered the loss: from {first:.6g} to "
                    f"{lowest:.6g}"
                )
        return Result(result, objective, state, StopReason(kind, reason))

    def _build_module(self, objective: Objective, image: Tensor) -> StyleTransfer:
        """Returns a module that begins with an image; with ``DAMPING`` if the run is damped."""
        settings, factor = self.settings, DAMPING if self.state.damped else 1.0
        lbfgs = settings.lbfgs.model_dump()
        lbfgs["lr"] *= factor
        largest_step = settings.largest_step * factor
        return StyleTransfer(objective, image, lbfgs, settings.first_step, largest_step, self.state)


def phases_of(settings: Experiment) -> list[Phase]:
    """Returns the phases of an experiment: coarse ones, a warm start, ``main``."""
    phases = _coarse_phases(settings)
    if settings.warm_start:
        phases.append(Phase("warm_start", paths.EMBEDDED_FILE, settings.warm_evaluations))
    return [*phases, Phase("main", paths.WEIGHTS_FILE, settings.evaluations)]


def _coarse_phases(settings: Experiment) -> list[Phase]:
    """Returns the phases of the setting ``sizes``, or without any those of ``coarse_to_fine``."""
    networks = {"backbone": paths.WEIGHTS_FILE, "embedded": paths.EMBEDDED_FILE}
    if settings.sizes or settings.schedule == "plain":
        return [
            Phase(f"size_{number}", networks[each.network], each.evaluations, each.size)
            for number, each in enumerate(settings.sizes, 1)
        ]
    full = picture_size(settings.content)
    edge = settings.size or (max(full) if settings.size_edge == "long" else min(full))
    network = networks["embedded" if settings.warm_start else "backbone"]
    return [
        Phase(name, network, settings.coarse_evaluations, edge // division)
        for name, division in COARSE.items()
        if _shortest_edge(settings, edge // division) >= MIN_COARSE_EDGE
    ]


def _shortest_edge(settings: Experiment, size: int) -> int:
    """Returns the least pixels of an edge of the image or of a picture that a loss looks at."""
    edges = sizes(settings, size)
    if "style" not in settings.image_roles:
        return min(edges["content"])
    return min(map(min, edges.values()))


def _total(objective: Objective, image: Tensor) -> float:
    with torch.no_grad():
        return float(objective(image)["total"])


def _as_saved(image: Tensor) -> bytes:
    return to_picture(image).tobytes()


def _reason_for_no_change(
    objective: Objective, start: Tensor, last: Tensor, kind: str, reason: str
) -> str:
    """Returns as a note why the picture is that of the start, if this is a minimum nearby."""
    norms = []
    for image in (start, last):
        image = image.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(image)[MINIMISED], image)
        norms.append(float(gradient.norm()))
    if norms[1] <= SMALL_GRADIENT * norms[0]:
        return "The loss has a minimum so near the start that the picture is the same"
    why = f" ({reason})" if kind == "standstill" else ""
    raise UserError(
        f"the image did not move: every pixel has its value of the start{why}. Give it more "
        "evaluations, a larger first_step and largest_step, or tolerances of 0"
    )
