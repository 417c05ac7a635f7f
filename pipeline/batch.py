"""Several searches as one batch: evaluated together, otherwise each as it would be alone.

A small image leaves most of a GPU idle, whose time goes into launching what it is to do. Of a batch
everything is launched once but what is a member's own: its L-BFGS, and what watches over it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
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
        optimizer: its own.
        trainer: what its callbacks get for Lightning's.
    """

    module: StyleTransfer
    watchers: Sequence[pl.Callback]
    keeping: Keeping
    objective: Objective = field(init=False)
    optimizer: LBFGS = field(init=False)
    trainer: Any = field(init=False)

    def join(self, pixels: Tensor) -> None:
        """Has the module's image be this one, (1, 3, H, W), a view of the batch's."""
        self.module.pixels.data = pixels
        self.objective, self.optimizer = self.module.objective, self.module.configure_optimizers()
        self.trainer = SimpleNamespace(
            callbacks=self.watchers,
            optimizers=[self.optimizer],
            loggers=[],
            should_stop=False,
            received_sigterm=False,
        )

    def begin(self) -> None:
        """Calls the hook of all that watches; ``Watching`` waits for interrupts, for all."""
        for callback in self.watchers:
            callback.on_fit_start(self.trainer, self.module)

    def call(self, hook: str, *arguments: Any) -> None:
        """Calls a hook of all that watches and keeps."""
        for callback in (*self.watchers, self.keeping):
            getattr(callback, hook)(self.trainer, self.module, *arguments)

    def save(self) -> None:
        """Writes a checkpoint; without the history of L-BFGS if no step is to follow."""
        if self.trainer.should_stop:
            self.trainer.optimizers = []
        self.keeping.save(self.trainer, self.module)


class Batch(pl.LightningModule):
    """The searches of several images; ``parameters()`` is the images alone, (N, 3, H, W).

    Args:
        members: with objectives that ``Objectives`` takes, images of one size and one first step;
            none with a line search.

    Attributes:
        going: those that have not left. An image of one that has stays as it is.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        super().__init__()
        modules = [member.module for member in members]
        self.objectives = Objectives([module.objective for module in modules])
        self.evaluator = Evaluator()
        device = self.objectives.features.get_buffer("mean").device
        self.pixels = nn.Parameter(torch.cat([module.pixels.detach() for module in modules]))
        self.pixels.data = self.pixels.data.to(device)
        self.scale = modules[0].scale
        for member, pixels in zip(members, torch.split(self.pixels.data, 1), strict=True):
            member.join(pixels)
        self.going = dict(enumerate(members))

    @property
    def images(self) -> Tensor:
        """The (N, 3, H, W) float32 images: RGB, 0 black and 1 white, not clamped."""
        return self.pixels / self.scale + MID_GREY

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Evaluates every image: the closure of all L-BFGS. Returns the sum of their losses."""
        images = self.images
        losses = self.evaluator(self.objectives, images)
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

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns what has each member's L-BFGS take its steps."""
        return Steps(self)

    def on_fit_end(self) -> None:
        """Lets a recording go: Lightning moves what it was made of."""
        self.evaluator = Evaluator()


class Steps(torch.optim.Optimizer):
    """A step of each member's L-BFGS; all are read from the device, and written, at once."""

    def __init__(self, batch: Batch) -> None:
        super().__init__([batch.pixels], {})
        self.going = batch.going

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Takes the steps, and returns the sum of the losses before them."""
        loss = torch.enable_grad()(closure)()
        ready = [member for member in self.going.values() if member.optimizer.receive()]
        if not ready:
            return loss
        parts = [member.optimizer.products() for member in ready]
        totals = torch.stack([member.module.losses["total"] for member in ready])
        read = torch.cat([*parts, totals[:, None].expand(-1, 2)]).cpu()
        *products, losses = torch.split(read, [*map(len, parts), len(ready)])
        moving, coefficients = [], []
        for member, of_member, (total, _) in zip(ready, products, losses, strict=True):
            found = member.optimizer.look(of_member.numpy(), total)
            if found is not None:
                moving.append((member.optimizer, found.length))
                coefficients.append(torch.from_numpy(found.coefficients))
        if moving:
            written = torch.cat(coefficients).to(read.dtype).to(loss.device)
            for (optimizer, length), each in zip(
                moving, torch.split(written, [*map(len, coefficients)]), strict=True
            ):
                optimizer.move(optimizer.along(each), length)
        return loss


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
