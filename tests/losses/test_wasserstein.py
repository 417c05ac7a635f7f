"""The distance of two Gaussians, against eigenvalues in float64, and its gradient."""

from __future__ import annotations

import pytest
import torch
from conftest import objective_of
from torch import Tensor

from pipeline.losses.feature_terms.style import gram_matrix
from pipeline.losses.feature_terms.wasserstein import RIDGE, WassersteinLoss, square_root
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.vgg import down_to

N = 5


def features(seed: int, size: tuple[int, int] = (19, 31)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.eye(N) + 0.2 * torch.rand((N, N), generator=generator, dtype=torch.float64)
    maps = torch.rand((1, N, *size), generator=generator, dtype=torch.float64)
    return torch.einsum("cd,xdhw->xchw", mixed, maps)


def term() -> WassersteinLoss:
    return WassersteinLoss({"wasserstein_weight": 1.0, "wasserstein_layers": {"conv1_1": 1.0}})


def mean_and_gram(maps: Tensor) -> Tensor:
    return torch.cat([maps.mean((0, 2, 3))[:, None], gram_matrix(maps)], 1)


def loss(value: Tensor, style: Tensor) -> Tensor:
    """Returns the loss of activations against those of a style, over N filters."""
    one = term()
    kind = one.statistic
    one.set_targets({"style": style}, lambda maps, *_: {kind: {"conv1_1": mean_and_gram(maps)}})
    return one.loss(one.measure(mean_and_gram(value)), one.targets["conv1_1@style"], N)


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.sqrt().diag() @ vectors.T


def test_square_root_is_that_by_eigenvalues() -> None:
    maps = features(0).flatten(2)[0]
    matrix = maps @ maps.T
    torch.testing.assert_close(square_root(matrix), root(matrix))


def test_loss_is_the_distance_of_two_gaussians() -> None:
    value, style = features(1), features(2, (23, 12))
    expected = torch.zeros((), dtype=torch.float64)
    covariances = []
    for maps in (value, style):
        rows = maps.flatten(2)[0]
        covariances.append(rows.cov(correction=0) + RIDGE * torch.eye(N))
    expected = (value.mean((2, 3)) - style.mean((2, 3))).square().sum()
    goal = root(covariances[1])
    both = root(goal @ covariances[0] @ goal)
    expected = expected + (covariances[0] + covariances[1] - 2 * both).trace()
    torch.testing.assert_close(loss(value, style), expected / N)


def test_loss_of_the_style_itself_is_0() -> None:
    assert loss(features(3), features(3)).item() == pytest.approx(0, abs=1e-9)
    assert loss(features(3), features(4)) > 1e-3


def test_gradient_is_autograds() -> None:
    value = features(5, (3, 4)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, features(6)), value)


def test_float32_is_near_float64(weights: dict[str, Tensor], images: tuple[Tensor, Tensor]) -> None:
    layers = ["conv1_1", "conv2_1"]
    settings = {"wasserstein_weight": 1.0, "wasserstein_layers": layers, "style_layers": layers}
    totals, gradients = [], []
    for dtype in (torch.float32, torch.float64):
        network = {name: each.to(dtype) for name, each in down_to(weights, ["conv2_1"]).items()}
        pair = images[0].to(dtype), images[1].to(dtype)
        image = pair[0].clone().requires_grad_()
        total = objective_of(FrozenFeatures(network, "max"), pair, **settings)(image)["total"]
        total.backward()
        assert image.grad is not None
        totals.append(total.item())
        gradients.append(image.grad.double())
    assert totals[0] == pytest.approx(totals[1], rel=1e-4)
    assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[1].norm()
