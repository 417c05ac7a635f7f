"""Decides when a phase ends: at a minimum, without gain or by divergence; keeps the best image."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor

from pipeline.config.schema import EarlyStop
from pipeline.losses.objective import Objective
from pipeline.optim.lbfgs import LBFGS
from pipeline.transfer.module import RunState, StyleTransfer

CHECK_INTERVAL = 10
"""Iterations between two checks: for each one a GPU has to be waited for."""
DIVERGENCE_FACTOR = 1000.0
"""A total loss this many times that of the phase's first evaluation counts as divergence."""
STANDSTILL_ITERATIONS = 30
"""Iterations with exactly the same float32 loss after which the image counts as unchanging."""
OVERFLOW = (
    "float32 cannot hold the loss in the unit of the weights. Divide all weights by the same "
    "number: only their ratios count"
)
NO_FEATURES = (
    "The network itself computes it. Look for what is wrong with the weights in `backbone`, or use "
    "shallower layers"
)
"""Remedies for a loss of the start that is not finite."""


class StopReason(NamedTuple):
    """Why a phase ended, in words.

    The kind is ``budget``, ``early stop``, ``standstill``, ``divergence``, or ``minimum`` if the
    start cannot be improved.
    """

    kind: str
    reason: str


class DivergedError(Exception):
    """The loss has diverged. The message says at which evaluation."""


class Convergence(pl.Callback):
    """Keeps the best image, and ends a phase that is done, diverged, stands still or gains little.

    ``History`` passes on the losses whenever it reads them from the device. Decisions are taken
    only at each ``CHECK_INTERVAL``-th iteration, so that a resumed run ends where it would have
    ended without the interruption. The last step of a line search may exceed the budget.

    Attributes:
        stop_reason: why the phase ends before its budget is used; None while it goes on.
        divergence: the evidence that the loss has diverged; empty while it has not.
        remedy: for a divergence whose evidence is not a finite number.
        any_finite: whether all losses and the gradient of any evaluation were finite.
        window: evaluation and lowest total loss from which ``early_stop`` measures the gain.
        unchanged: iterations since the total loss last changed.
        latest: iteration, and total loss of its first evaluation.
        best_image, best_total, best_evaluation: the (1, 3, H, W) image with the lowest total loss,
            that loss, and the evaluation.
    """

    def __init__(self, evaluations: int, early_stop: EarlyStop | None = None) -> None:
        self.stop_reason: StopReason | None = None
        self.divergence = self.remedy = ""
        self.any_finite = False
        self.first_total = math.nan
        self.lowest_total = math.inf
        self.window: tuple[int, float] | None = None
        self.unchanged = 0
        self.latest = (-1, math.nan)
        self.best_image: Tensor | None = None
        self.best_total: Tensor | None = None
        self.best_evaluation: Tensor | None = None
        self._saved = tuple(vars(self))  # Lightning adds others
        self.evaluations, self.early_stop = evaluations, early_stop

    def state_dict(self) -> dict[str, Any]:
        """Returns the attributes, as tensors and plain values."""
        state = {name: getattr(self, name) for name in self._saved}
        return {**state, "stop_reason": tuple(self.stop_reason or ())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)
        self.stop_reason = StopReason(*self.stop_reason) if self.stop_reason else None

    def restart(self) -> None:
        """Lets the phase go on after a divergence."""
        self.divergence, self.stop_reason = "", None

    def change_precision(self, objective: Objective) -> None:
        """Forgets the losses so far; those that follow are of an objective in another precision."""
        self.lowest_total, self.window, self.unchanged = math.inf, None, 0
        if self.best_image is not None:
            with torch.no_grad():
                self.best_total = objective(self.best_image)["total"]

    def on_after_backward(self, _: pl.Trainer, module: StyleTransfer) -> None:
        """Keeps the image if it is the best one, without waiting for a GPU to read its loss."""
        total, image = module.losses["total"], module.evaluated
        evaluation = torch.full_like(total, module.run.total_evaluations, dtype=torch.int64)
        if self.best_image is None or self.best_total is None or self.best_evaluation is None:
            self.best_image, self.best_total = image.clone(), torch.full_like(total, math.inf)
            self.best_evaluation = evaluation
        self.best_image, self.best_total = self.best_image.to(image), self.best_total.to(total)
        self.best_evaluation = self.best_evaluation.to(evaluation)
        better = total < self.best_total  # False for NaN
        torch.where(better, image, self.best_image, out=self.best_image)
        torch.where(better, total, self.best_total, out=self.best_total)
        torch.where(better, evaluation, self.best_evaluation, out=self.best_evaluation)
        if module.run.evaluations == 1:
            self.stop_reason = _reason_to_stay(module)

    def observe(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Takes in evaluations in their order, each a row of the history by column."""
        for row in rows:
            if self.divergence:
                return
            total, iteration = row["total"], int(row["iteration"])
            if math.isnan(self.first_total):
                self.first_total = total
            # Further trials of a line search may be as bad as they like.
            if iteration != self.latest[0]:
                self.divergence = self._find_divergence(row)
                self.unchanged = self.unchanged + 1 if total == self.latest[1] else 0
                self.latest = iteration, total
            if not self.divergence and all(map(math.isfinite, row.values())):
                self.any_finite, self.lowest_total = True, min(self.lowest_total, total)
                self._check_gain(int(row["evaluation"]))

    def _find_divergence(self, row: Mapping[str, float]) -> str:
        odd = [name for name, value in row.items() if not math.isfinite(value)]
        if odd:
            # The losses before any weight come from the network, and the others from them.
            unweighted = [name for name in odd if f"{name}_weighted" in row]
            self.remedy = NO_FEATURES if unweighted else OVERFLOW
            name = (unweighted or odd)[0]
            return f"{name} is {row[name]} at evaluation {row['evaluation']:.0f}"
        if self.has_exploded(row["total"]):
            return (
                f"the total loss is {row['total']:.3g} at evaluation {row['evaluation']:.0f}, "
                f"{DIVERGENCE_FACTOR:.0f} times that of the start, {self.first_total:.3g}"
            )
        return ""

    def has_exploded(self, total: float) -> bool:
        """Returns whether a total loss is not finite, or too large beside that of the start."""
        return not math.isfinite(total) or total > DIVERGENCE_FACTOR * self.first_total > 0

    def _check_gain(self, evaluation: int) -> None:
        if self.early_stop is None or self.stop_reason:
            return
        self.window = self.window or (evaluation, self.lowest_total)
        first, lowest = self.window
        if evaluation - first < self.early_stop.evaluations:
            return
        gain = 1 - self.lowest_total / lowest if lowest else 0.0
        if gain < self.early_stop.gain:
            self.stop_reason = StopReason(
                "early stop",
                f"evaluations {first} to {evaluation} took {gain:.2%} off the loss, less than "
                f"early_stop asks for ({self.early_stop.gain:.2%})",
            )
        self.window = evaluation, self.lowest_total

    def on_train_batch_end(self, trainer: pl.Trainer, module: StyleTransfer, *_: Any) -> None:
        if module.run.iterations % CHECK_INTERVAL == 0:
            self._raise_if_diverged()
            exact = module.precision == "float32"  # otherwise Refinement acts on a standstill
            if exact and self.unchanged >= STANDSTILL_ITERATIONS and not self.stop_reason:
                optimizer = trainer.optimizers[0]
                cause = optimizer.reason_not_moved if isinstance(optimizer, LBFGS) else ""
                self.stop_reason = StopReason(
                    "standstill",
                    f"the loss was {self.latest[1]:.6g} for {self.unchanged} iterations on end: "
                    f"{cause or 'the steps are too small to change the image'}",
                )
        trainer.should_stop = trainer.should_stop or self.is_over(module.run)

    def is_over(self, run: RunState) -> bool:
        """Returns whether the phase ends at the present iteration."""
        at_start = self.stop_reason is not None and self.stop_reason.kind == "minimum"
        stopped = self.stop_reason is not None and run.iterations % CHECK_INTERVAL == 0
        return at_start or stopped or run.evaluations >= self.evaluations

    def _raise_if_diverged(self, *_: Any) -> None:
        if self.divergence:
            raise DivergedError(self.divergence)

    on_fit_end = _raise_if_diverged  # type: ignore[assignment]


def _reason_to_stay(module: StyleTransfer) -> StopReason | None:
    """Returns why the image just evaluated cannot be improved, or None."""
    if module.objective.is_fulfilled(module.losses):
        return StopReason("minimum", "the start fulfils the loss")
    if not module.gradient.any():
        return StopReason("minimum", "the gradient of the loss is 0 at the start")
    return None
