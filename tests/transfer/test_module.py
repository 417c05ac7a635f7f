"""The module: one parameter, L-BFGS as Lightning drives it, against a plain loop."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from conftest import objective_of
from torch import Tensor

from pipeline.losses.objective import MINIMISED, Objective
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.vgg import down_to
from pipeline.optim.lbfgs import LBFGS
from pipeline.transfer.convergence import Convergence
from pipeline.transfer.module import StyleTransfer

PLAIN = {
    "lr": 1.0,
    "history_size": 5,
    "tolerance_grad": 0.0,
    "tolerance_change": 0.0,
    "max_eval": 25,
}


@pytest.fixture
def objective(weights: dict[str, Tensor], images: tuple[Tensor, Tensor]) -> Objective:
    return objective_of(
        FrozenFeatures(down_to(weights, ["conv3_1"]), "avg"),
        images,
        content_layers={"conv2_2": 1.0},
        style_layers={"conv1_1": 0.5, "conv2_1": 0.5},
        content_weight=0.1,
        style_weight=1.0,
        variation_weight=0.01,
        range_weight=0.5,
    )


def fit(module: StyleTransfer, evaluations: int) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=evaluations,
        callbacks=[Convergence(evaluations)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, train_dataloaders=repeat(0))
    return trainer


def plain_loop(
    objective: Objective, start: Tensor, scale: float, steps: int, **arguments: Any
) -> Tensor:
    pixels = ((start - 0.5) * scale).requires_grad_()
    optimizer = LBFGS(pixels, **arguments)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(pixels / scale + 0.5)[MINIMISED]
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return pixels.detach() / scale + 0.5


def test_the_image_is_the_only_parameter_and_the_only_state(
    objective: Objective, images: tuple[Tensor, Tensor]
) -> None:
    module = StyleTransfer(objective, images[0], PLAIN)
    (parameter,) = module.parameters()
    assert parameter is module.pixels
    assert parameter.shape == images[0].shape
    assert list(module.state_dict()) == ["pixels"]
    torch.testing.assert_close(module.image, images[0])


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lightning_gives_the_image_of_a_plain_loop(
    line_search: str | None, objective: Objective, images: tuple[Tensor, Tensor]
) -> None:
    start = torch.rand_like(images[0])
    arguments = {**PLAIN, "line_search_fn": line_search}
    module = StyleTransfer(objective, start, arguments, largest_step=float("inf"))
    trainer = fit(module, 12)
    loop = plain_loop(objective, start, module.scale, trainer.global_step, **arguments)
    assert torch.equal(module.image, loop)
    assert not torch.equal(module.image, start)


def test_line_search_counts_more_evaluations_than_steps(
    objective: Objective, images: tuple[Tensor, Tensor]
) -> None:
    module = StyleTransfer(objective, images[1], {**PLAIN, "line_search_fn": "strong_wolfe"})
    trainer = fit(module, 10)
    assert trainer.global_step < module.run.evaluations
    assert 10 <= module.run.evaluations < 10 + 25


@pytest.mark.parametrize("first_step", [1e-2, 1e-4])
@pytest.mark.parametrize("size", [(24, 40), (48, 80)])
def test_first_step_moves_a_pixel_by_the_same_at_every_size(
    size: tuple[int, int], first_step: float, weights: dict[str, Tensor]
) -> None:
    generator = torch.Generator().manual_seed(0)
    content, start = (torch.rand((1, 3, *size), generator=generator) for _ in range(2))
    objective = objective_of(
        FrozenFeatures(down_to(weights, ["conv3_1"]), "avg"),
        (content, content),
        content_layers={"conv1_2": 1.0},
        content_weight=1e3,
    )
    module = StyleTransfer(objective, start, PLAIN, first_step)
    fit(module, 1)
    moved = (module.image - start).abs().mean().item()
    assert moved == pytest.approx(first_step, rel=0.01)


def test_loss_falls_and_the_named_losses_add_up(
    objective: Objective, images: tuple[Tensor, Tensor]
) -> None:
    module = StyleTransfer(objective, torch.rand_like(images[0]), PLAIN)
    fit(module, 1)
    first = dict(module.losses)
    fit(module, 30)
    assert module.losses["total"] < first["total"] / 3
    for losses in (first, module.losses):
        parts = [losses[name] for name in losses if name.endswith("_weighted")]
        others = losses["variation"] + losses["out_of_range"]
        torch.testing.assert_close(sum(parts) + others, losses["total"])
        torch.testing.assert_close(losses["content"] + losses["style"] + others, losses["total"])
        torch.testing.assert_close(losses["content"], 0.1 * losses["content_conv2_2"])


def test_total_is_the_sum_of_the_parts_asked_for(
    weights: dict[str, Tensor], images: tuple[Tensor, Tensor]
) -> None:
    features = FrozenFeatures(down_to(weights, ["conv3_1"]), "avg")
    weights_of_both = {"content_weight": 1.0, "style_weight": 1.0}
    content_only = objective_of(features, images, content_layers=["conv2_2"], **weights_of_both)
    style_only = objective_of(features, images, style_layers=["conv2_1"], **weights_of_both)
    assert content_only(images[0])["total"] == 0
    assert style_only(images[1])["total"] == 0
    assert content_only(images[1])["total"] > 0
    assert style_only(images[0])["total"] > 0


def test_gradient_is_that_of_the_image(objective: Objective, images: tuple[Tensor, Tensor]) -> None:
    image = images[1].clone().requires_grad_()
    objective(image)["total"].backward()
    module = StyleTransfer(objective, images[1], PLAIN)
    fit(module, 1)
    gradient = objective.unit * module.gradient
    torch.testing.assert_close(gradient, image.grad, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(module.gradient_norm, gradient.norm())


def test_range_loss_keeps_the_loss_of_the_saved_picture_low(
    weights: dict[str, Tensor], images: tuple[Tensor, Tensor]
) -> None:
    def losses(range_weight: float) -> tuple[float, float]:
        objective = objective_of(
            FrozenFeatures(down_to(weights, ["conv3_1"]), "avg"),
            (images[0], (images[1] > 0.5).float()),
            style_layers={"conv1_1": 1.0, "conv2_1": 1.0},
            style_weight=1.0,
            range_weight=range_weight,
        )
        module = StyleTransfer(objective, images[0], PLAIN)
        fit(module, 60)
        with torch.no_grad():
            image = module.image
            return float(objective(image)["style"]), float(objective(image.clamp(0, 1))["style"])

    free, cut_off = losses(0.0)
    assert cut_off > 10 * free
    unclamped, saved = losses(500.0)
    assert saved == pytest.approx(unclamped, rel=0.05)
    assert saved < cut_off / 2
