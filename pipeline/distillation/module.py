"""The LightningModule that trains a small network to predict VGG-19's features."""

import math
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from pipeline.distillation.student import SMALL_LAYERS, Student
from pipeline.distillation.training_data import TrainingBatch, TrainingData, subsample
from pipeline.errors import UserError
from pipeline.networks.layers import LAYERS
from pipeline.networks.vgg import linear_map

WARM_UP = 0.05
"""Fraction of the steps in which the learning rates rise; then they fall along a cosine to 0."""
LARGEST_GRADIENT = 5.0
VARIANCE_FLOOR = 1e-3
"""Variance per filter that is added to that of an image, which may be flat; in the layer's unit."""


class DistillationModule(pl.LightningModule):
    """Fits the student's predictions to the teacher's features.

    The loss of a layer is its fraction of variance unexplained: the squared error over the variance
    of the teacher's features, both summed over filters. It is 0 for a perfect prediction and 1 for
    each filter's mean. Style transfer uses the network plain and rescaled, so the loss is the mean
    of two fractions: for VGG-19's filters as they are, and divided by their mean activations.

    Muon (Jordan et al. 2024) trains the convolutions and the heads of blocks 3 to 5, AdamW the
    biases and the other heads; their learning rates follow the same schedule.
    """

    def __init__(self, student: Student, data: TrainingData) -> None:
        super().__init__()
        self.automatic_optimization = False  # Lightning requires it of two optimisers
        self.student, self.data = student, data
        self.teacher = data.teacher  # follows this module to its device
        self.curve: list[dict[str, float]] = []  # the mean metrics of each epoch
        settings = self.settings = data.settings
        self.steps_per_epoch = settings.passes * math.ceil(settings.images / settings.batch_size)
        self.steps = settings.epochs * self.steps_per_epoch
        for name, mean in self.teacher.means.items():
            rescaling = (self.teacher.deviations[name] / mean).square()
            factors = torch.stack([torch.ones_like(rescaling), rescaling])
            self.register_buffer(f"factors_{name}", factors, persistent=False)

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> None:
        """Takes one step of both optimisers."""
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"
        ):
            residuals = self.residuals(batch)
        weights = self.settings.layers
        loss = torch.stack([weights[name] * pair.mean() for name, pair in residuals.items()]).sum()
        optimizers: Any = self.optimizers()
        schedules: Any = self.lr_schedulers()
        self.zero_grad()
        self.manual_backward(loss)
        nn.utils.clip_grad_norm_(self.parameters(), LARGEST_GRADIENT)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        metrics = {f"residual_{name}": pair[0].detach() for name, pair in residuals.items()}
        metrics = {"loss": loss.detach(), **metrics}
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=len(batch.images))

    def on_train_epoch_end(self) -> None:
        """Adds the epoch to the curve, and prints its residuals."""
        epoch = self.current_epoch + 1
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        if not all(map(math.isfinite, metrics.values())):  # before the checkpoint is written
            raise UserError(
                f"the loss is {metrics['loss']} in epoch {epoch}: the training diverged. "
                "Lower distillation.learning_rate. The checkpoint of the epoch before is kept"
            )
        self.curve.append({"epoch": epoch, **metrics})
        residuals = [f"{metrics[f'residual_{name}']:.3f}" for name in SMALL_LAYERS]
        print(f"epoch {epoch}:", *residuals, flush=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["curve"] = self.curve

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.curve = checkpoint["curve"]

    def residuals(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """Returns {layer: (2,) fractions of variance unexplained, filters plain and rescaled}."""
        residuals = {}
        for name, features in self.student(batch.images):
            target = batch.targets[name].float()
            sampled = subsample(features, name, batch.offset)
            prediction = linear_map(self.student.heads[name], sampled).float()
            errors = (prediction - target).square().mean(dim=(2, 3))
            variances = target.var(dim=(2, 3), unbiased=False)
            factors = self.get_buffer(f"factors_{name}")
            unexplained = (errors[:, None] * factors).sum(2)
            variance = (variances[:, None] * factors).sum(2) + VARIANCE_FLOOR * factors.sum(1)
            residuals[name] = (unexplained / variance).mean(0)
        return residuals

    def configure_optimizers(self) -> tuple[list[Any], list[Any]]:
        """Returns Muon and AdamW, and their schedules."""
        by_muon = list(self.student.convolutions.values())
        by_adamw = list(self.student.biases.values())
        for name, head in self.student.heads.items():
            (by_muon if LAYERS[name].block >= 3 else by_adamw).append(head)
        options: dict[str, Any] = {"lr": self.settings.learning_rate, "weight_decay": 0.0}
        muon = torch.optim.Muon(by_muon, adjust_lr_fn="match_rms_adamw", **options)
        adam = torch.optim.AdamW(by_adamw, betas=(0.9, 0.99), **options)
        schedule = torch.optim.lr_scheduler.LambdaLR
        return [muon, adam], [schedule(muon, self._rate), schedule(adam, self._rate)]

    def _rate(self, step: int) -> float:
        """Returns the factor of the learning rates at a step."""
        done = (step + 1) / (self.steps + 1)
        if done < WARM_UP:
            return done / WARM_UP
        return (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2


class EpochLoader:
    """Makes the batches of the module's current epoch each time it is iterated over."""

    def __init__(self, module: DistillationModule) -> None:
        self.module = module

    def __iter__(self) -> Iterator[TrainingBatch]:
        schedules: Any = self.module.lr_schedulers()
        # Not current_epoch, which right after a resume is one too low.
        number = schedules[0].last_epoch // self.module.steps_per_epoch
        return self.module.data.epoch(number, self.module.student.weights())
