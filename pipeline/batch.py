"""Several searches as one batch: evaluated together, otherwise each as it would be alone.

A small image leaves most of a GPU idle, whose time goes into launching what it is to do. Of a batch
everything is launched once but what watches over each member.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from pipeline.course import DivergedError
from pipeline.lbfgs import LBFGS
from pipeline.module import MID_GREY, StyleTransfer
from pipeline.objective import Objective, Objectives
from pipeline.recording import Evaluator
from pipeline.resuming import Keeping, Saving
from pipeline.trainer import run


@dataclass
class Member:
    """A search in a batch.

    Attributes:
        module: its image, losses and counts; its parameter becomes a view of the batch's.
        watchers: what watches over it.
        keeping: what writes its checkpoints, the last when it leaves the batch.
        objective: what it began with; with another it leaves.
        trainer: what its callbacks get for Lightning's.
    """

    module: StyleTransfer
    watchers: Sequence[pl.Callback]
    keeping: Keeping
    objective: Objective = field(init=False)
    trainer: Any = field(init=False)

    def join(self, batch: Batch, index: int) -> None:
        """Has the module's image be the one of this number in the batch: a view of it."""
        self.module.pixels.data = batch.pixels.data[index : index + 1]
        self.objective = self.module.objective
        self.trainer = _Trainer(batch, index, self.module.pixels, self.watchers)

    def begin(self) -> None:
        """Calls the hook of all that watches; ``Watching`` waits for interrupts, for all."""
        for callback in self.watchers:
            callback.on_fit_start(self.trainer, self.module)

    def call(self, hook: str, *arguments: Any) -> None:
        """Calls a hook of all that watches and keeps."""
        for callback in (*self.watchers, self.keeping):
            getattr(callback, hook)(self.trainer, self.module, *arguments)

    def save(self) -> None:
        """Writes a checkpoint."""
        self.keeping.save(self.trainer, self.module)


@dataclass
class _Trainer:
    """What a member's callbacks ask a trainer for."""

    batch: Batch
    index: int
    pixels: Tensor
    callbacks: Sequence[pl.Callback]
    loggers: Sequence[Logger] = ()
    should_stop: bool = False

    @property
    def optimizers(self) -> list[LBFGS]:
        """The member's L-BFGS, copied; none if no step is to follow."""
        (whole,) = self.batch.trainer.optimizers
        assert isinstance(whole, LBFGS)
        return [] if self.should_stop else [whole.alone(self.index, self.pixels)]


class Batch(pl.LightningModule):
    """The searches of several images; ``parameters()`` is the images alone, (N, 3, H, W).

    Args:
        members: with objectives that ``Objectives`` takes, images of one size, one first step, and
            the same options of L-BFGS; none with a line search.

    Attributes:
        going: those that have not left. Nobody looks at what becomes of an image of one that has.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        super().__init__()
        modules = [member.module for member in members]
        self.objectives = Objectives([module.objective for module in modules])
        self.evaluator = Evaluator()
        device = self.objectives.features.get_buffer("mean").device
        self.pixels = nn.Parameter(torch.cat([module.pixels.detach() for module in modules]))
        self.pixels.data = self.pixels.data.to(device)
        self.scale, self.lbfgs = modules[0].scale, modules[0].lbfgs
        self.totals = self.pixels.new_zeros(len(members))
        for index, member in enumerate(members):
            member.join(self, index)
        self.going = dict(enumerate(members))

    @property
    def images(self) -> Tensor:
        """The (N, 3, H, W) float32 images: RGB, 0 black and 1 white, not clamped."""
        return self.pixels / self.scale + MID_GREY

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Evaluates every image: the closure of L-BFGS. Returns the sum of their losses."""
        images = self.images
        losses = self.evaluator(self.objectives, images)
        self.totals = losses["total"].detach()
        rows = torch.stack([loss.detach() for loss in losses.values()], 1)
        for index, member in self.going.items():
            named = dict(zip(losses, rows[index].unbind(), strict=True))
            member.module.note(images[index : index + 1].detach(), named)
        return losses["total"].sum()

    def backward(self, loss: Tensor, *_: Any, **__: Any) -> None:
        """Computes the gradient of every image."""
        loss.backward()  # type: ignore[no-untyped-call]
        assert self.pixels.grad is not None
        for index, member in self.going.items():
            member.module.pixels.grad = self.pixels.grad[index : index + 1]

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Has all that are going take a step, and counts it."""
        super().optimizer_step(*arguments, **options)
        for member in self.going.values():
            member.module.iterations += 1

    def configure_optimizers(self) -> LBFGS:
        """Returns L-BFGS, which takes a step of every image at once."""
        return LBFGS(self.pixels, **self.lbfgs, losses=lambda: self.totals)

    def on_train_end(self) -> None:
        """Lets L-BFGS's history go, which is large: Lightning would have it moved to the CPU."""
        self.trainer.strategy.optimizers = []

    def on_fit_end(self) -> None:
        """Lets a recording go: Lightning moves what it was made of."""
        self.evaluator = Evaluator()


class Watching(Saving):
    """Has what watches over each member see it, and lets those leave that are done.

    So are those that are at their end, those that are to go on in float32, and those that have
    diverged: they go on, or begin anew, alone.
    """

    def save(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        for member in _batch(module).going.values():
            member.save()

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        super().on_fit_start(trainer, module)
        for member in _batch(module).going.values():
            member.begin()

    def on_after_backward(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        for member in _batch(module).going.values():
            member.call("on_after_backward")

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, *rest: Any
    ) -> None:
        going = _batch(module).going
        for index, member in list(going.items()):
            try:
                member.call("on_train_batch_end", *rest)
            except DivergedError:
                del going[index]
                continue
            if member.trainer.should_stop or member.module.objective is not member.objective:
                member.save()
                del going[index]
        trainer.should_stop = not going
        super().on_train_batch_end(trainer, module)


def fit_together(members: Sequence[Member], evaluations: int) -> None:
    """Runs members until all have left, each with a checkpoint to go on from unless it diverged.

    Args:
        members: as ``Batch`` takes them.
        evaluations: the largest of their budgets.

    Raises:
        SystemExit: 143 after SIGTERM, 130 after an interrupt; all that were going were saved.
    """
    batch = Batch(members)
    run(
        batch,
        batch.pixels.device,
        data=itertools.repeat(0),
        precision="32-true",
        max_steps=evaluations,
        callbacks=[Watching()],
        logger=False,
        deterministic=False,
        enable_checkpointing=False,
    )


def _batch(module: pl.LightningModule) -> Batch:
    assert isinstance(module, Batch)
    return module
