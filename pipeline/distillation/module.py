"""The LightningModule that teaches a small network VGG-19's activations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from pipeline.distillation.lessons import Lesson, Lessons, thinned
from pipeline.distillation.student import Student
from pipeline.networks.layers import LAYERS
from pipeline.networks.vgg import linear_map

if TYPE_CHECKING:
    from pipeline.config.schema import Distillation

WARM_UP = 0.05
"""Share of the steps in which the learning rates rise; then they fall along a cosine to 0."""
LARGEST_GRADIENT = 5.0
FLAT = 1e-3
"""Mean variance of filters, in units of the layer, added so that flat samples are not all."""


class Teaching(pl.LightningModule):
    """Fits a student's predictions to a teacher's activations.

    The loss of a layer is the squared error of a sample over its variance, summed over filters:
    half of it with every filter as VGG-19 has it, half with every filter divided by its mean
    activation, since the network is used both ways.

    Convolutions and the heads of blocks 3 to 5 are moved by Muon (Jordan et al. 2024), biases and
    the other heads by AdamW; both learning rates rise and fall together.

    Args:
        student: its parameters are the only ones.
        lessons: what it learns from.
        settings: the section ``distillation`` of params.yaml.
    """

    def __init__(self, student: Student, lessons: Lessons, settings: Distillation) -> None:
        super().__init__()
        self.automatic_optimization = False  # Lightning drives two optimisers only by hand
        self.student, self.lessons, self.settings = student, lessons, settings
        self.steps_an_epoch = settings.passes * math.ceil(settings.images / settings.batch_size)
        self.steps = settings.epochs * self.steps_an_epoch
        for name, mean in lessons.means.items():
            rescaling = (lessons.units[name] / mean).square()
            self.register_buffer(f"rescaling_{name}", rescaling, persistent=False)

    def train_dataloader(self) -> Iterable[Lesson]:
        """Returns what begins the lessons of the current epoch each time it is gone through."""
        return _Epochs(self)

    def training_step(self, lesson: Lesson, batch_idx: int) -> None:
        """Takes one step of both optimisers."""
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"
        ):
            residuals = self.residuals(lesson)
        loss = torch.stack(
            [
                self.settings.layers[name] * (raw + rescaled) / 2
                for name, (raw, rescaled) in residuals.items()
            ]
        ).sum()
        optimizers: Any = self.optimizers()
        schedules: Any = self.lr_schedulers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        nn.utils.clip_grad_norm_(self.parameters(), LARGEST_GRADIENT)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        raw = {f"residual_{name}": pair[0].detach() for name, pair in residuals.items()}
        metrics = {"loss": loss.detach(), **raw}
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=len(lesson.images))

    def residuals(self, lesson: Lesson) -> dict[str, tuple[Tensor, Tensor]]:
        """Returns each layer's squared error over its variance: filters as they are, and rescaled.

        0 is a perfect prediction, 1 what predicting each filter's mean would give.
        """
        found = {}
        for name, activations in self.student(lesson.images):
            target = lesson.targets[name].float()
            maps = thinned(activations, name, lesson.first)
            prediction = linear_map(self.student.heads[name], maps).float()
            errors = (prediction - target).square().mean(dim=(2, 3))
            variances = target.var(dim=(2, 3), unbiased=False)
            rescaling = self.get_buffer(f"rescaling_{name}")
            found[name] = (
                _relative(errors, variances, torch.ones_like(rescaling)),
                _relative(errors, variances, rescaling),
            )
        return found

    def configure_optimizers(self) -> tuple[list[Any], list[Any]]:
        heads = self.student.heads
        deep = [head for name, head in heads.items() if LAYERS[name].block >= 3]
        shallow = [head for name, head in heads.items() if LAYERS[name].block < 3]
        muon = torch.optim.Muon(
            [*self.student.convolutions.values(), *deep],
            lr=self.settings.learning_rate,
            weight_decay=0.0,
            adjust_lr_fn="match_rms_adamw",
        )
        adam = torch.optim.AdamW(
            [*self.student.biases.values(), *shallow],
            lr=self.settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=0.0,
        )
        schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate) for optimizer in (muon, adam)
        ]
        return [muon, adam], schedules

    def _rate(self, step: int) -> float:
        done = (step + 1) / (self.steps + 1)
        if done < WARM_UP:
            return done / WARM_UP
        return (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2


class _Epochs:
    def __init__(self, module: Teaching) -> None:
        self.module = module

    def __iter__(self) -> Iterator[Lesson]:
        module = self.module
        module.lessons.teacher.to(module.device)
        schedules: Any = module.lr_schedulers()
        # Not current_epoch, which after a resume is still that of the epoch before.
        number = schedules[0].last_epoch // module.steps_an_epoch
        return module.lessons.epoch(number, module.student.weights())


def _relative(errors: Tensor, variances: Tensor, weights: Tensor) -> Tensor:
    """Returns the mean over the batch of weighted (B, N) errors over variances, a scalar."""
    floor = FLAT * weights.sum()
    return ((errors * weights).sum(1) / ((variances * weights).sum(1) + floor)).mean()
