"""Tiles and the history of L-BFGS divided among two processes: the numbers of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_frozen import small_weights
from test_lbfgs import EXACT, descend, valley
from test_tiling import EVERY_BLOCK, PAPER, REGIONS, pictures, random_tensor
from torch import Tensor

from pipeline.losses import make_terms
from pipeline.losses.objective import MINIMISED, Objective
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.frozen.stages import divided, forward_steps
from pipeline.networks.shared_features import SharedFeatures
from pipeline.optim.lbfgs import LBFGS
from pipeline.runtime.process_group import ProcessGroup, process_group


@pytest.fixture(scope="module")
def group() -> Iterator[ProcessGroup]:
    with process_group(2, torch.device("cpu")) as group:
        yield group


def evaluations(
    features: FrozenFeatures, size: tuple[int, int], settings: dict[str, Any], dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """Returns the losses and gradients of two images, and the loss of one without a gradient."""
    images = {role: image.to(dtype) for role, image in pictures(size).items()}
    terms = make_terms({"content_weight": 1.0, "style_weight": 2.0, **settings})
    objective = Objective(features, terms, images)
    results = []
    for seed in (9, 10):
        image = random_tensor(seed, 1, 3, *size).to(dtype).requires_grad_()
        loss = objective(image)[MINIMISED]
        results.append((loss.detach(), *torch.autograd.grad(loss, image)))
    with torch.no_grad():
        results.append((objective(images["content"])[MINIMISED], torch.ones(1)))
    return results


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize(
    ("size", "pooling", "settings"),
    [
        ((160, 208), "avg", PAPER),
        ((97, 330), "max", PAPER),
        ((129, 131), "avg", EVERY_BLOCK),
        ((177, 139), "max", REGIONS),
    ],
)
def test_two_processes_have_the_loss_and_the_gradient_of_one(
    size: tuple[int, int],
    pooling: str,
    settings: dict[str, Any],
    dtype: torch.dtype,
    tolerance: float,
    group: ProcessGroup,
) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in small_weights().items()}
    shared = SharedFeatures(weights, pooling, "float32", 64, group)
    ours = evaluations(shared, size, settings, dtype)
    one = evaluations(FrozenFeatures(weights, pooling, tile=64), size, settings, dtype)
    for (loss, gradient), (expected, expected_gradient) in zip(ours, one, strict=True):
        assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
        difference = (gradient - expected_gradient).abs().max()
        assert difference <= tolerance * expected_gradient.abs().max()


def test_each_process_computes_half_of_the_tiles(group: ProcessGroup) -> None:
    needs = {"gram_matrix": ["conv1_1", "conv3_1", "conv5_1"]}
    features = SharedFeatures(small_weights(), "avg", "float32", 32, group)
    visits: list[float] = []
    features.watchers["test"] = visits.append
    features(torch.zeros(1, 3, 128, 256), needs)
    stages = divided(forward_steps(features.layers, needs), (128, 256), 32)
    assert [len(stage.pieces) for stage in stages] == [32, 8, 8]
    assert len(visits) == 16 + 4 + 4


def test_bf16_maps_are_added_up_too(group: ProcessGroup) -> None:
    size, results = (150, 210), []
    for each in (group, None):
        weights = small_weights()
        features = (
            SharedFeatures(weights, "avg", "bf16", 64, each)
            if each
            else FrozenFeatures(weights, "avg", "bf16", tile=64)
        )
        results.append(evaluations(features, size, PAPER, torch.float32)[0])
    (loss, gradient), (expected, expected_gradient) = results
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    cosine = torch.cosine_similarity(gradient.flatten(), expected_gradient.flatten(), dim=0)
    assert cosine > 0.999


@pytest.mark.parametrize(
    "options", [{}, {"scaling": "mean"}, {"line_search_fn": "strong_wolfe", "max_eval": 25}]
)
def test_lbfgs_takes_the_steps_of_one_process(options: dict[str, Any], group: ProcessGroup) -> None:
    expected, losses = valley(lambda p: LBFGS(p, 0.3, **EXACT, **options), 30)
    ours, together = valley(lambda p: LBFGS(p, 0.3, **EXACT, **options, group=group), 30)
    torch.testing.assert_close(torch.tensor(together), torch.tensor(losses), rtol=1e-6, atol=0)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_lbfgs_goes_on_from_its_saved_state(precision: Any, group: ProcessGroup) -> None:
    options: dict[str, Any] = {**EXACT, "history_precision": precision, "group": group}
    whole, _ = valley(lambda p: LBFGS(p, 0.3, **options), 20)
    made: list[LBFGS] = []
    half, _ = valley(lambda p: made.append(LBFGS(p, 0.3, **options)) or made[-1], 9)  # type: ignore[func-returns-value]
    saved = made[0].state_dict()
    assert saved["state"][0]["rows"].shape == (14, 60)
    again = half.detach().clone().requires_grad_()
    optimizer = LBFGS(again, 0.3, **options)
    optimizer.load_state_dict(saved)
    descend(again, optimizer, 11)
    assert torch.equal(again, whole)


def test_each_process_stores_half_of_the_pairs(group: ProcessGroup) -> None:
    point = torch.zeros(61, requires_grad=True)
    assert LBFGS(point, history_size=3, group=group).history.rows.shape == (8, 31)
