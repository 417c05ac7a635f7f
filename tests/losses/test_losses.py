"""The equations of the paper, against sums written out and against its analytic gradients."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from pipeline.losses.feature_terms.content import ContentLoss, squared_distance
from pipeline.losses.feature_terms.style import StyleLoss, gram_matrix
from pipeline.losses.pixel_terms.out_of_range import OutOfRange
from pipeline.losses.pixel_terms.total_variation import TotalVariation
from pipeline.losses.term import WHOLE, LossConvention

N, H, W = 5, 4, 6
M = H * W


def content(convention: str) -> ContentLoss:
    return ContentLoss({"content_weight": 1.0, "convention": convention})


def content_loss(convention: str, features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return content(convention).loss(squared_distance(features, target), target, N)


def style(convention: str) -> StyleLoss:
    return StyleLoss({"style_layers": [], "style_weight": 1.0, "convention": convention})


@pytest.fixture
def features() -> torch.Tensor:
    return torch.rand((1, N, H, W), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def target() -> torch.Tensor:
    return torch.rand((1, N, H, W), generator=torch.Generator().manual_seed(1))


def test_gram_matrix_is_the_sum_over_positions(features: torch.Tensor) -> None:
    maps = features[0].reshape(N, M)
    expected = [
        [sum(maps[i, k] * maps[j, k] for k in range(M)) / M for j in range(N)] for i in range(N)
    ]
    torch.testing.assert_close(gram_matrix(features), torch.tensor(expected))


def test_gram_matrix_ignores_pixel_order(features: torch.Tensor) -> None:
    order = torch.randperm(M, generator=torch.Generator().manual_seed(2))
    shuffled = features.flatten(2)[..., order].reshape(1, N, H, W)
    torch.testing.assert_close(gram_matrix(shuffled), gram_matrix(features))


def test_gram_matrix_ignores_the_size_of_a_tiled_picture(features: torch.Tensor) -> None:
    torch.testing.assert_close(gram_matrix(features.repeat(1, 1, 2, 3)), gram_matrix(features))


def test_gram_matrix_is_float32_for_half_precision_features(features: torch.Tensor) -> None:
    assert gram_matrix(features.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("convention", get_args(LossConvention))
def test_losses_are_zero_at_their_target_only(
    convention: str, features: torch.Tensor, target: torch.Tensor
) -> None:
    of_style = style(convention).loss
    assert content_loss(convention, features, features) == 0
    assert of_style(gram_matrix(features), gram_matrix(features), N) == 0
    assert content_loss(convention, features, target) > 0
    assert of_style(gram_matrix(features), gram_matrix(target), N) > 0


def test_conventions_differ_by_the_constants_they_name(
    features: torch.Tensor, target: torch.Tensor
) -> None:
    ratio = content_loss("paper", features, target) / content_loss("mean", features, target)
    assert ratio.item() == pytest.approx(N * M / 2)
    grams = gram_matrix(features), gram_matrix(target)
    ratio = style("mean").loss(*grams, N) / style("paper").loss(*grams, N)
    assert ratio.item() == pytest.approx(4)


def test_mean_losses_are_means_where_channels_are_filters(
    features: torch.Tensor, target: torch.Tensor
) -> None:
    expected = (features - target).square().mean()
    torch.testing.assert_close(content_loss("mean", features, target), expected)
    grams = gram_matrix(features), gram_matrix(target)
    expected = (grams[0] - grams[1]).square().mean()
    torch.testing.assert_close(style("mean").loss(*grams, N), expected)


def test_content_gradient_is_equation_2(target: torch.Tensor) -> None:
    before_relu = torch.randn((1, N, H, W), generator=torch.Generator().manual_seed(4))
    before_relu.requires_grad_()
    activations = before_relu.relu()
    content_loss("paper", activations, target).backward()
    expected = torch.where(activations > 0, activations - target, 0)
    assert (activations == 0).any()
    torch.testing.assert_close(before_relu.grad, expected.detach())


def test_style_gradient_is_equation_6(target: torch.Tensor) -> None:
    before_relu = torch.randn((1, N, H, W), generator=torch.Generator().manual_seed(5))
    before_relu.requires_grad_()
    activations = before_relu.relu()
    style("paper").loss(gram_matrix(activations), gram_matrix(target), N).backward()
    maps, goal = activations.detach()[0].reshape(N, M), target[0].reshape(N, M)
    gradient = (maps.T @ (maps @ maps.T - goal @ goal.T)).T / (N**2 * M**2)
    expected = torch.where(maps > 0, gradient, 0).reshape(1, N, H, W)
    torch.testing.assert_close(before_relu.grad, expected)


def test_total_variation_sees_edges_not_levels() -> None:
    flat = torch.full((1, 3, 4, 6), 0.7)
    edge = flat.clone()
    edge[..., 3:] = 0.2
    term = TotalVariation({})
    assert term.parts(flat, {})[WHOLE] == 0
    assert term.parts(edge, {})[WHOLE].item() == pytest.approx(0.5**2 / 5)


def test_only_what_no_picture_can_hold_is_out_of_range() -> None:
    image = torch.tensor([0.0, 1.0, 0.3, -0.2, 1.5, 0.9]).view(1, 3, 1, 2).requires_grad_()
    loss = OutOfRange({}).parts(image, {})[WHOLE]
    loss.backward()
    assert loss.item() == pytest.approx((0.2**2 + 0.5**2) / 6)
    expected = torch.tensor([0.0, 0.0, 0.0, -0.2, 0.5, 0.0]) * 2 / 6
    torch.testing.assert_close(image.grad, expected.view(1, 3, 1, 2))
