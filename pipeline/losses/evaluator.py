"""Evaluates an objective, on a GPU by replaying a CUDA graph.

To launch the some hundred small kernels of an evaluation one by one may take longer than computing
them. A CUDA graph launches all of them at once.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.losses.objective import MINIMISED, Objective
from pipeline.runtime.cuda_graphs import cuda_graph

WARM_UP = 2
"""Evaluations before a recording."""
TOLERANCE = 0.01
"""Relative difference allowed between a replay and an ordinary evaluation: far above rounding."""

Losses = dict[str, Tensor]
Evaluation = tuple[Losses, Tensor]
"""The losses, and the gradient ∂minimised/∂image."""
Recorder = Callable[[Callable[[], Evaluation], int], tuple[Callable[[], object], Evaluation]]


class Evaluator:
    """Evaluates the objective it is given in the fastest way, which it remembers for the next call.

    The loss ``MINIMISED`` that it returns can be differentiated. On a GPU the next call overwrites
    the other losses.
    """

    def __init__(self) -> None:
        self.objective: Objective | None = None
        self.evaluate: Callable[[Tensor], Losses] | None = None

    def __call__(self, objective: Objective, image: Tensor) -> Losses:
        if objective is not self.objective:
            self.objective = self.evaluate = None  # free one recording before the next is made
            self.objective, self.evaluate = objective, fastest_evaluation(objective, image)
        assert self.evaluate is not None
        return self.evaluate(image)


def fastest_evaluation(objective: Objective, image: Tensor) -> Callable[[Tensor], Losses]:
    """Returns the objective, or on a CUDA GPU a recording of it if one can be made.

    The objective must stay unchanged and on its device; the images to be evaluated must have the
    shape and device of the given one.
    """
    # The kernels of a tile are large, and a graph would hold the memory of all tiles.
    if image.device.type == "cuda" and objective.features.tile is None:
        try:
            return RecordedObjective(objective, image, cuda_graph)
        except RuntimeError as error:
            print(f"evaluating without a CUDA graph, since it could not be recorded: {error}")
    return objective


class RecordedObjective:
    """An objective whose evaluations are replays; arguments as for ``fastest_evaluation``.

    Raises:
        RuntimeError: it cannot be recorded, or a replay differs from an ordinary evaluation.
    """

    def __init__(self, objective: Objective, image: Tensor, recorder: Recorder) -> None:
        self.objective = objective  # whose memory the replays read
        self.image = image.detach().clone().requires_grad_()
        samples = [image.detach().flip(edge).requires_grad_() for edge in (3, 2)]
        expected = [_evaluate(objective, sample) for sample in samples]
        self._replay, self.results = recorder(lambda: _evaluate(objective, self.image), WARM_UP)
        for sample, (losses, gradient) in zip(samples, expected, strict=True):
            self.replay(sample)
            _check_close(self.results[0][MINIMISED], losses[MINIMISED])
            _check_close(self.results[1], gradient)

    def __call__(self, image: Tensor) -> Losses:
        minimised: Tensor = _Replay.apply(image, self)
        return self.results[0] | {MINIMISED: minimised}

    def replay(self, image: Tensor) -> None:
        """Leaves an image's evaluation in ``results``."""
        with torch.no_grad():
            self.image.copy_(image)
        self._replay()


class _Replay(torch.autograd.Function):
    """From an image to the loss, by a replay that computes the gradient too."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, recorded: RecordedObjective) -> Tensor:
        recorded.replay(image)
        ctx.gradient = recorded.results[1]
        return recorded.results[0][MINIMISED].clone()

    @staticmethod
    def backward(ctx: Any, of_loss: Tensor) -> tuple[Tensor, None]:
        return of_loss * ctx.gradient, None


def _evaluate(objective: Objective, image: Tensor) -> Evaluation:
    losses = objective(image)
    (gradient,) = torch.autograd.grad(losses[MINIMISED], image)
    return {name: loss.detach() for name, loss in losses.items()}, gradient


def _check_close(replayed: Tensor, expected: Tensor) -> None:
    difference = float((replayed - expected).norm() / expected.norm().clamp_min(1e-30))
    if not difference <= TOLERANCE:
        raise RuntimeError(f"a replay differs by {difference:.2g}")
