"""The LightningModule whose one parameter is the generated image, its fit, and its run's state."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from pipeline.losses.evaluator import Evaluator
from pipeline.losses.objective import MINIMISED, Objective
from pipeline.optim.image_variable import to_image, to_variable, variable_scale
from pipeline.optim.lbfgs import LBFGS
from pipeline.runtime.precision import Precision
from pipeline.runtime.summation import total
from pipeline.runtime.trainer import run as run_trainer


@dataclass
class RunState:
    """How far a run is, through its phases of different networks, image sizes and budgets.

    Attributes:
        start: the image that the current phase began with, (1, 3, H, W) float32, RGB in [0, 1].
        earlier_evaluations: evaluations of the objective in all earlier phases.
        notes: what else happened in the run, a sentence each.
        files: what the run has written, relative to its folder.
        evaluations, float32_evaluations: those in the current phase, and those in float32.
        iterations: steps of the optimizer in the current phase.
        damped: whether the phase diverged and went on with shorter steps.
        tile: edge in pixels of the pieces that the phase computes its image in, or None.
    """

    start: Tensor
    phase: str = "main"
    earlier_evaluations: int = 0
    notes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    evaluations: int = 0
    float32_evaluations: int = 0
    iterations: int = 0
    damped: bool = False
    tile: int | None = None

    @property
    def total_evaluations(self) -> int:
        """The number of the latest evaluation in the run."""
        return self.earlier_evaluations + self.evaluations


class StyleTransfer(pl.LightningModule):
    """Optimises the image that minimises an objective (Gatys et al. 2016, §2.3).

    ``parameters()`` and ``state_dict()`` hold the image and nothing else: the network and the
    targets are non-persistent buffers.

    **Differs:** the parameter is not the image but the variable of ``optim.image_variable``, whose
    scale sets the length of the first step alone: without tolerances no later step and no loss
    depends on it. The authors' code subtracts ImageNet's mean in place of mid-grey.

    Args:
        objective: may be replaced between two steps.
        start: (1, 3, H, W) float32, RGB in [0, 1]; copied.
        lbfgs: options of ``optim.lbfgs.LBFGS``.
        first_step: mean distance that the first step moves a pixel, RGB in [0, 1].
        largest_step: the largest mean distance that any step may move a pixel.
        run: updated by the module; by default a new one.

    Attributes:
        losses: the latest evaluation, {name of ``Objective.names``: scalar}.
        evaluated: the image of that evaluation, (1, 3, H, W).
        optimizer_state: the state with which L-BFGS begins, or None.
    """

    def __init__(
        self,
        objective: Objective,
        start: Tensor,
        lbfgs: Mapping[str, Any],
        first_step: float = 1e-3,
        largest_step: float = 0.1,
        run: RunState | None = None,
    ) -> None:
        super().__init__()
        self.objective, self.evaluator = objective, Evaluator()
        self.scale = variable_scale(start, first_step)
        self.pixels = nn.Parameter(to_variable(start, self.scale))
        self.lbfgs = {"largest_step": largest_step * self.scale, **lbfgs}
        self.run = run or RunState(start)
        self.losses: dict[str, Tensor] = {}
        self.evaluated = start
        self.optimizer_state: dict[str, Any] | None = None

    @property
    def precision(self) -> Precision:
        """The precision in which the network computes now."""
        return self.objective.features.precision

    @property
    def image(self) -> Tensor:
        """The (1, 3, H, W) float32 image: RGB, 0 black and 1 white, not clamped."""
        return to_image(self.pixels, self.scale)

    @image.setter
    def image(self, image: Tensor) -> None:
        with torch.no_grad():
            self.pixels.copy_(to_variable(image, self.scale))

    @property
    def gradient(self) -> Tensor:
        """∂minimised/∂image of the latest evaluation, (1, 3, H, W) float32."""
        assert self.pixels.grad is not None, "nothing was evaluated yet"
        return self.pixels.grad * self.scale

    @property
    def gradient_norm(self) -> Tensor:
        """The L2 norm of ∂total/∂image of the latest evaluation, a scalar."""
        return self.objective.unit * total(self.gradient.square()).sqrt()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Evaluates the objective: the closure of L-BFGS, which a line search calls repeatedly."""
        image = self.image
        losses = self.evaluator(self.objective, image)
        self.evaluated = image.detach()
        self.losses = {name: losses[name].detach() for name in self.objective.names}
        self.run.evaluations += 1
        self.run.float32_evaluations += self.precision == "float32"
        return losses[MINIMISED]

    def on_train_end(self) -> None:
        """Frees the history of L-BFGS and a CUDA graph, whose tensors Lightning would move."""
        self.trainer.strategy.optimizers = []
        self.evaluator = Evaluator()

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Lets the optimizer take a step, and counts it."""
        super().optimizer_step(*arguments, **options)
        self.run.iterations += 1

    def configure_optimizers(self) -> LBFGS:
        """Returns L-BFGS, one iteration a step: Lightning's ``global_step`` is an iteration."""
        optimizer = LBFGS(self.pixels, group=self.objective.features.group, **self.lbfgs)
        if self.optimizer_state:
            optimizer.load_state_dict(self.optimizer_state)
            self.optimizer_state = None
        return optimizer


def fit(
    module: StyleTransfer,
    callbacks: Sequence[pl.Callback],
    evaluations: int,
    logger: Logger | None = None,
    deterministic: bool = True,
) -> None:
    """Optimises the image on the device of its objective.

    The callbacks, ``Convergence`` among them, are called in their order. ``deterministic`` allows
    only operations that give the same result twice. Raises what ``runtime.trainer.run`` raises, and
    ``DivergedError`` if the loss diverged.
    """
    run_trainer(
        module,
        next(module.objective.buffers()).device,
        data=itertools.repeat(0),  # the module does not look into its batches
        max_steps=evaluations,
        callbacks=list(callbacks),
        logger=logger or False,
        deterministic=deterministic,
        enable_checkpointing=False,
    )
