"""How an objective is evaluated: step by step, or on a GPU as a recording of all its steps.

A run evaluates one function at one size hundreds of times, some hundred small kernels each, and to
launch them one by one may take longer than to compute them. A CUDA graph launches all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.losses.objective import Objective
from pipeline.runtime.cuda_graphs import cuda_graph

WARM_UP = 2
"""Evaluations before a recording."""
CLOSE = 0.01
"""How far a replay may be off an ordinary evaluation, as a part of it: far above rounding."""

Named = dict[str, Tensor]
"""An evaluation by the names of ``Objective.named``."""
Evaluation = tuple[Named, Tensor]
"""The same and ∂total/∂image."""
Recorder = Callable[[Callable[[], Evaluation], int], tuple[Callable[[], object], Evaluation]]
"""Records as ``cuda_graph`` does."""


class Evaluator:
    """Evaluates an objective the fastest way there is; another objective anew."""

    def __init__(self) -> None:
        self.objective: Objective | None = None
        self.evaluate: Callable[[Tensor], Named] | None = None

    def __call__(self, objective: Objective, image: Tensor) -> Named:
        """Returns ``Objective.named`` of an image, the total with its derivative.

        On a GPU the others are overwritten by the next evaluation.
        """
        if objective is not self.objective:
            self.objective = self.evaluate = None  # the memory of one recording is enough
            self.objective, self.evaluate = objective, quickest(objective, image)
        assert self.evaluate is not None
        return self.evaluate(image)


def quickest(objective: Objective, image: Tensor) -> Callable[[Tensor], Named]:
    """Returns what evaluates: on a CUDA GPU a recording, if one can be made.

    Args:
        objective: stays where and as it is.
        image: like those to come.
    """
    if image.device.type == "cuda":
        try:
            return Recorded(objective, image, cuda_graph)
        except RuntimeError as error:
            print(f"not recorded as a CUDA graph, and so evaluated step by step: {error}")
    return lambda image: objective.named(objective(image))


class Recorded:
    """An objective whose evaluations are replays.

    Args:
        objective, image: as ``quickest`` takes them.
        recorder: ``cuda_graph``.

    Raises:
        RuntimeError: it cannot be recorded, or a replay is not what it should be.
    """

    def __init__(self, objective: Objective, image: Tensor, recorder: Recorder) -> None:
        self.objective = objective
        self.image = image.detach().clone().requires_grad_()
        tried = image.detach().flip(3), image.detach().flip(2)
        expected = [_copied(self._evaluated(other)) for other in tried]
        self.again, self.results = recorder(self._evaluated, WARM_UP)
        for other, (losses, gradient) in zip(tried, expected, strict=True):
            self.replay(other)
            _refuse_other(self.results[0]["total"], losses["total"])
            _refuse_other(self.results[1], gradient)

    def __call__(self, image: Tensor) -> Named:
        """Returns ``Objective.named`` of an image, the total with its derivative."""
        total: Tensor = _Replay.apply(image, self)
        return self.results[0] | {"total": total}

    def replay(self, image: Tensor) -> None:
        """Leaves an image's evaluation in ``results``."""
        with torch.no_grad():
            self.image.copy_(image)
        self.again()

    def _evaluated(self, image: Tensor | None = None) -> Evaluation:
        if image is not None:
            with torch.no_grad():
                self.image.copy_(image)
        losses = self.objective.named(self.objective(self.image))
        (gradient,) = torch.autograd.grad(losses["total"].sum(), self.image)
        return {name: loss.detach() for name, loss in losses.items()}, gradient


class _Replay(torch.autograd.Function):
    """From an image to the total loss, by a replay that computes the gradient too."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, recorded: Recorded) -> Tensor:
        recorded.replay(image)
        ctx.gradient = recorded.results[1]
        return recorded.results[0]["total"].clone()

    @staticmethod
    def backward(ctx: Any, of_total: Tensor) -> tuple[Tensor, None]:
        return of_total.view(-1, 1, 1, 1) * ctx.gradient, None


def _copied(evaluation: Evaluation) -> Evaluation:
    losses, gradient = evaluation
    return {name: loss.clone() for name, loss in losses.items()}, gradient.clone()


def _refuse_other(found: Tensor, expected: Tensor) -> None:
    off = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
    if not off <= CLOSE:
        raise RuntimeError(f"a replay is {off:.2g} off")
