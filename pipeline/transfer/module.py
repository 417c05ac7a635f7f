"""The LightningModule: one parameter, the generated image, moved by L-BFGS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from pipeline.losses.evaluator import Evaluator
from pipeline.losses.objective import Objective
from pipeline.optim.lbfgs import LBFGS

MID_GREY = 0.5
COUNTS = "evaluations", "exact_evaluations", "iterations"


class StyleTransfer(pl.LightningModule):
    """Finds the image that minimises an objective (Gatys et al. 2016, §2.3).

    ``parameters()`` is the image alone and ``state_dict()`` holds nothing else: the network and
    the targets are non-persistent buffers.

    **Differs:** the parameter is the image less mid-grey, times ``scale``. L-BFGS begins
    with a step of length 1 in the L1 norm, whatever the gradient: over a million pixels in [0, 1]
    that is a millionth each, which float32 all but loses, and the curvature measured there is
    rounding noise. The scale makes this first step move a pixel by ``first_step`` on average, at
    every size; without tolerances no later step depends on it, and no loss does. Mid-grey is
    subtracted because float32 is finest around 0 (the authors' code subtracts ImageNet's mean).

    ``evaluations`` counts the closure's calls, ``exact_evaluations`` those in float32,
    ``iterations`` the optimiser's steps; ``losses`` holds the latest evaluation by the names of
    ``Objective.named``, and ``evaluated`` its image. Another ``objective`` may take the place of
    the first between two steps. ``optimizer_state``, if there is one, is what L-BFGS begins with.

    Args:
        objective: the loss as a function of an image.
        start: (1, 3, H, W) float32, RGB in [0, 1]; copied.
        lbfgs: options of ``lbfgs.LBFGS``.
        first_step: mean distance that the first step moves a pixel, RGB in [0, 1].
        largest_step: the most that any step moves a pixel, likewise in the mean.
    """

    def __init__(
        self,
        objective: Objective,
        start: Tensor,
        lbfgs: Mapping[str, Any],
        first_step: float = 1e-3,
        largest_step: float = 0.1,
    ) -> None:
        super().__init__()
        self.objective, self.evaluator = objective, Evaluator()
        self.scale = 1 / (first_step * start.numel())
        self.pixels = nn.Parameter(((start - MID_GREY) * self.scale).contiguous())
        self.lbfgs = {"largest_step": largest_step * self.scale, **lbfgs}
        self.evaluations = self.exact_evaluations = self.iterations = 0
        self.losses: dict[str, Tensor] = {}
        self.evaluated = start
        self.optimizer_state: dict[str, Any] | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Evaluations, those of them in float32, and iterations."""
        return {name: getattr(self, name) for name in COUNTS}

    @counts.setter
    def counts(self, counts: Mapping[str, int]) -> None:
        for name in COUNTS:
            setattr(self, name, counts[name])

    @property
    def image(self) -> Tensor:
        """The (1, 3, H, W) float32 image: RGB, 0 black and 1 white, not clamped."""
        return self.pixels / self.scale + MID_GREY

    @image.setter
    def image(self, image: Tensor) -> None:
        with torch.no_grad():
            self.pixels.copy_((image - MID_GREY) * self.scale)

    @property
    def gradient(self) -> Tensor:
        """∂total/∂image of the latest evaluation, (1, 3, H, W) float32."""
        assert self.pixels.grad is not None, "nothing was evaluated yet"
        return self.pixels.grad * self.scale

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Evaluates the objective once: the closure of L-BFGS, called again by a line search."""
        image = self.image
        losses = self.evaluator(self.objective, image)
        self.note(image.detach(), {name: loss.detach() for name, loss in losses.items()})
        return losses["total"]

    def note(self, evaluated: Tensor, losses: dict[str, Tensor]) -> None:
        """Takes note of an evaluation: an image (1, 3, H, W) and its losses by their names."""
        self.evaluated, self.losses = evaluated, losses
        self.evaluations += 1
        self.exact_evaluations += self.objective.features.precision == "float32"

    def on_train_end(self) -> None:
        """Lets L-BFGS's history go, which is large: Lightning would have it moved to the CPU."""
        self.trainer.strategy.optimizers = []

    def on_fit_end(self) -> None:
        """Lets a recording go: Lightning moves what it was made of."""
        self.evaluator = Evaluator()

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Has the optimiser take a step, and counts it."""
        super().optimizer_step(*arguments, **options)
        self.iterations += 1

    def configure_optimizers(self) -> LBFGS:
        """Returns L-BFGS, one iteration a step: Lightning's ``global_step`` is an iteration."""
        optimizer = LBFGS(self.pixels, **self.lbfgs)
        if self.optimizer_state:
            optimizer.load_state_dict(self.optimizer_state)
            self.optimizer_state = None
        return optimizer
