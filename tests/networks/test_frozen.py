"""The network's statistics and their derivative by hand, against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.distillation.student import SMALL_LAYERS, Student
from pipeline.errors import UserError
from pipeline.losses.functions import gram_matrix
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.small_vgg import tapped
from pipeline.networks.vgg import Features
from pipeline.runtime.precision import Precision

CONTENTS, STYLES = ["conv1_2", "conv3_1", "conv4_2"], ["conv1_1", "conv3_1", "conv5_1"]
IMAGE = torch.rand((1, 3, 37, 53), generator=torch.Generator().manual_seed(0))
"""Odd edges: every pooling drops a row or a column."""


def small_weights() -> dict[str, Tensor]:
    return tapped(Student((4, 6, 8, 10, 12), dict.fromkeys(SMALL_LAYERS, 2.0), seed=0).weights())


def double(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in weights.items()}


def judged(features: list[Tensor], grams: list[Tensor]) -> Tensor:
    """Returns a scalar in which every value counts differently."""
    generator = torch.Generator().manual_seed(1)
    values = [*features, *grams]
    factors = [torch.randn(value.shape, generator=generator).to(value) for value in values]
    return torch.stack([(f * value).sum() for f, value in zip(factors, values, strict=True)]).sum()


def by_autograd(weights: dict[str, Tensor], pooling: str) -> tuple[Tensor, Tensor]:
    image = IMAGE.double().requires_grad_()
    found = Features(weights, pooling)(image, [*CONTENTS, *STYLES])
    value = judged([found[n] for n in CONTENTS], [gram_matrix(found[n]) for n in STYLES])
    return value.detach(), torch.autograd.grad(value, image)[0]


def by_hand(
    weights: dict[str, Tensor], pooling: str, dtype: torch.dtype, precision: str
) -> tuple[Tensor, Tensor]:
    image = IMAGE.to(dtype).requires_grad_()
    contents, grams = FrozenFeatures(weights, pooling, precision)(image, CONTENTS, STYLES)
    value = judged([contents[n] for n in CONTENTS], [grams[n] for n in STYLES])
    return value.detach(), torch.autograd.grad(value, image)[0]


@pytest.mark.parametrize("network", ["vgg19", "vgg19-small"])
@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_images_of_a_batch_know_nothing_of_each_other(
    precision: Precision, pooling: str, network: str, weights: dict[str, Tensor]
) -> None:
    features = FrozenFeatures(
        weights if network == "vgg19" else small_weights(), pooling, precision
    )
    batch = torch.cat([IMAGE, IMAGE.flip(2), IMAGE.square()]).requires_grad_()
    contents, grams = features(batch, CONTENTS, STYLES)
    found = [contents[n] for n in CONTENTS], [grams[n] for n in STYLES]
    of_each = [judged(*([v[i : i + 1] for v in values] for values in found)) for i in range(3)]
    (gradient,) = torch.autograd.grad(torch.stack(of_each).sum(), batch)
    tolerance = 1e-4 if precision == "float32" else 0.02
    for i in range(3):
        image = batch[i : i + 1].detach().requires_grad_()
        contents, grams = features(image, CONTENTS, STYLES)
        value = judged([contents[n] for n in CONTENTS], [grams[n] for n in STYLES])
        (alone,) = torch.autograd.grad(value, image)
        assert of_each[i].item() == pytest.approx(value.item(), rel=tolerance, abs=1e-3)
        assert (gradient[i : i + 1] - alone).norm() < tolerance * alone.norm()


@pytest.mark.parametrize("network", ["vgg19", "vgg19-small"])
@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_statistics_and_gradient_are_those_of_autograd(
    pooling: str, network: str, weights: dict[str, Tensor]
) -> None:
    exact = double(weights if network == "vgg19" else small_weights())
    value, gradient = by_hand(exact, pooling, torch.float64, "float32")
    expected, expected_gradient = by_autograd(exact, pooling)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_deepest_layer_may_be_of_content_and_style(weights: dict[str, Tensor]) -> None:
    """There the gradient comes from outside, laid out as it happens to be, and is not ours."""
    exact = double(weights)
    image = IMAGE.double().requires_grad_()
    maps = Features(exact, "avg")(image, ["conv2_2"])["conv2_2"]
    generator = torch.Generator().manual_seed(2)
    given = [
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in (maps.shape, (1, 128, 128))
    ]
    before = given[0].clone()
    (expected,) = torch.autograd.grad([maps, gram_matrix(maps)[None]], image, given)
    contents, grams = FrozenFeatures(exact, "avg")(image, ["conv2_2"], ["conv2_2"])
    (found,) = torch.autograd.grad([contents["conv2_2"], grams["conv2_2"]], image, given)
    torch.testing.assert_close(found, expected)
    assert torch.equal(given[0], before)


def test_bf16_points_where_float32_does(weights: dict[str, Tensor]) -> None:
    value, gradient = by_hand(weights, "avg", torch.float32, "bf16")
    expected, expected_gradient = by_hand(weights, "avg", torch.float32, "float32")
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0.03, atol=0)
    cosine = torch.cosine_similarity(gradient.flatten(), expected_gradient.flatten(), dim=0)
    assert cosine > 0.99


def test_results_are_float32_and_contiguous_in_every_precision(weights: dict[str, Tensor]) -> None:
    for precision in ("float32", "bf16"):
        contents, grams = FrozenFeatures(weights, "avg", precision)(IMAGE, CONTENTS, STYLES)
        assert {value.dtype for value in (contents | grams).values()} == {torch.float32}


def test_nothing_is_computed_below_the_deepest_layer_asked_for(weights: dict[str, Tensor]) -> None:
    computed = []
    network = FrozenFeatures(weights, "avg")
    for name, convolution in network.convolutions.items():
        convolution.register_forward_hook(lambda *_, name=name: computed.append(name))
    network(IMAGE, [], ["conv2_1"])
    assert computed == ["conv1_1", "conv1_2", "conv2_1"]
    assert network(IMAGE, [], []) == ({}, {})
    assert len(computed) == 3


def test_small_picture_and_unknown_layer_are_refused(weights: dict[str, Tensor]) -> None:
    network = FrozenFeatures(weights, "avg")
    with pytest.raises(UserError, match="8x40 pixels; conv5_1 needs at least 16x16"):
        network(torch.rand(1, 3, 8, 40), [], ["conv5_1"])
    with pytest.raises(UserError, match="unknown layer 'conv9_1'"):
        network(IMAGE, ["conv9_1"], [])


def test_convolutions_leave_cudnn_as_they_found_it(weights: dict[str, Tensor]) -> None:
    before = torch.backends.cudnn.conv.fp32_precision
    FrozenFeatures(weights, "avg", "tf32")(IMAGE, ["conv1_1"], [])
    assert torch.backends.cudnn.conv.fp32_precision == before
