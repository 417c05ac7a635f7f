"""How a run is going: its best image so far, and whether there is any use in going on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor

from pipeline.optim.lbfgs import LBFGS
from pipeline.transfer.module import StyleTransfer

EVERY = 10
"""Iterations from one judgement to the next: each makes a GPU wait."""
EXPLODED = 1000.0
"""A total loss so many times that of the stage's first evaluation has left for good."""
STILL = 30
"""Iterations of one and the same loss in float32 after which the image counts as still."""
SLACK = 1.05
"""By how much losses of another precision may differ without another image being the better."""


class End(NamedTuple):
    """Why a stage of a run ended.

    Attributes:
        kind: ``budget``, ``early stop``, ``standstill`` or ``divergence``.
        reason: in words.
    """

    kind: str
    reason: str


class DivergedError(Exception):
    """The loss left for good; the message says where, and the course has the best image."""


class Course(pl.Callback):
    """Keeps the best image, and ends a run that has diverged, stands still or gains too little.

    The history tells it what it has read. It acts at each ``EVERY``-th iteration and at no other,
    whenever it was told, so that a run that was stopped and resumed ends where it would have.

    Args:
        early_stop: (evaluations, gain): ends the run when so many evaluations take less than this
            part off the lowest total loss; None never does.
        state: of a checkpoint, to go on from.

    Attributes:
        end: why the run is to end, None while it goes on.
        damped: whether this is the second try, after a divergence.
        diverged: what showed that the loss has left; empty while it has not.
        sound: whether any evaluation had finite losses and gradient.
    """

    def __init__(
        self,
        early_stop: tuple[int, float] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.early_stop = early_stop
        self.end: End | None = None
        self.damped = False
        self.diverged = ""
        self.sound = False
        self.first = math.nan
        self.lowest = math.inf
        self.window: tuple[int, float] | None = None
        self.still = 0
        self.latest = (-1, math.nan)
        self.best: Tensor | None = None
        self.best_total: Tensor | None = None
        for name, value in (state or {}).items():
            setattr(self, name, End(*value) if name == "end" and value else value)

    def state(self) -> dict[str, Any]:
        """Returns tensors and plain values to go on from; of no use once it has diverged."""
        names = "damped", "sound", "first", "lowest", "window", "still", "latest"
        state = {name: getattr(self, name) for name in (*names, "best", "best_total")}
        return {**state, "end": tuple(self.end) if self.end else None}

    def restart(self) -> None:
        """Forgets the losses so far, which no longer compare but roughly."""
        self.lowest, self.window, self.still = math.inf, None, 0
        if self.best_total is not None:
            self.best_total = self.best_total * SLACK

    def on_after_backward(self, _: pl.Trainer, module: pl.LightningModule) -> None:
        """Keeps the image if it is the best, without reading its loss: a GPU need not wait."""
        assert isinstance(module, StyleTransfer)
        total, image = module.losses["total"], module.evaluated
        if self.best is None or self.best_total is None:
            self.best, self.best_total = image.clone(), torch.full_like(total, math.inf)
        self.best, self.best_total = self.best.to(image), self.best_total.to(total)
        better = total < self.best_total  # and never if it is NaN
        torch.where(better, image, self.best, out=self.best)
        torch.where(better, total, self.best_total, out=self.best_total)

    def see(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Takes note of evaluations, in their order, by the columns of the history."""
        for row in rows:
            if self.diverged:
                return
            self._see(int(row["evaluation"]), int(row["iteration"]), row)

    def _see(self, evaluation: int, iteration: int, row: Mapping[str, float]) -> None:
        total = row["total"]
        if math.isnan(self.first):
            self.first = total
        if iteration != self.latest[0]:  # what a line search tries within one says nothing yet
            self.diverged = self._departure(evaluation, row)
            self.still = self.still + 1 if total == self.latest[1] else 0
            self.latest = iteration, total
        if self.diverged or not all(map(math.isfinite, row.values())):
            return
        self.sound, self.lowest = True, min(self.lowest, total)
        self._watch_gain(evaluation)

    def _departure(self, evaluation: int, row: Mapping[str, float]) -> str:
        """Returns what shows that the loss has left, empty if nothing does."""
        odd = next((name for name, value in row.items() if not math.isfinite(value)), None)
        if odd is not None:
            return f"{odd} is {row[odd]} at evaluation {evaluation}"
        if row["total"] > EXPLODED * self.first > 0:
            return (
                f"the total loss is {row['total']:.3g} at evaluation {evaluation}, "
                f"{EXPLODED:.0f} times that of the start, {self.first:.3g}"
            )
        return ""

    def _watch_gain(self, evaluation: int) -> None:
        if self.early_stop is None or self.end:
            return
        if self.window is None:
            self.window = evaluation, self.lowest
        count, gain = self.early_stop
        if evaluation - self.window[0] < count:
            return
        gained = 1 - self.lowest / self.window[1] if self.window[1] else 0.0
        if gained < gain:
            reason = f"evaluations {self.window[0]} to {evaluation} took {gained:.2%} off the loss"
            self.end = End("early stop", f"{reason}, less than early_stop asks for ({gain:.2%})")
        self.window = evaluation, self.lowest

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(module, StyleTransfer)
        if module.iterations % EVERY:
            return
        self._refuse_diverged()
        exact = module.objective.features.precision == "float32"  # else Refinement sees to it
        if exact and self.still >= STILL and not self.end:
            optimizer = trainer.optimizers[0]
            why = optimizer.still if isinstance(optimizer, LBFGS) else ""
            reason = f"the loss was {self.latest[1]:.6g} for {self.still} iterations on end"
            why = why or "the steps are too small to change the image"
            self.end = End("standstill", f"{reason}: {why}")
        trainer.should_stop = trainer.should_stop or self.is_over(module)

    def is_over(self, module: StyleTransfer) -> bool:
        """Returns whether the run ends where it is now."""
        return self.end is not None and module.iterations % EVERY == 0

    def on_fit_end(self, *_: Any) -> None:
        self._refuse_diverged()

    def _refuse_diverged(self) -> None:
        if self.diverged:
            raise DivergedError(self.diverged)
