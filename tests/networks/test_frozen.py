"""The network's statistics and their hand-written gradient, against autograd."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from pipeline.distillation.student import SMALL_LAYERS, Student
from pipeline.errors import UserError
from pipeline.losses.feature_terms.content import squared_distance
from pipeline.losses.feature_terms.style import gram_matrix
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.frozen.statistics import STATISTICS, Statistics, statistic
from pipeline.networks.layers import LAYERS, Context
from pipeline.networks.small_vgg import tapped
from pipeline.networks.vgg import Features, layers_of

CONTENT, STYLE = ("conv1_2", "conv3_1", "conv4_2"), ("conv1_1", "conv3_1", "conv5_1")
NEEDS = {
    "features": CONTENT,
    "gram_matrix": STYLE,
    "mean_and_gram_matrix": ("conv2_1", "conv3_1"),
    "squared_distance@one": ("conv2_1", "conv4_2"),
}
IMAGE = torch.rand((1, 3, 37, 53), generator=torch.Generator().manual_seed(0))
"""Odd edges: every pooling drops a row or a column."""


def small_weights() -> dict[str, Tensor]:
    return tapped(Student((4, 6, 8, 10, 12), dict.fromkeys(SMALL_LAYERS, 2.0), seed=0).weights())


def double(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in weights.items()}


def references(weights: dict[str, Tensor], pooling: str) -> Context:
    """Returns the features of another image, for the squared distance."""
    image = IMAGE.flip(3).to(weights["mean"])
    return Context(references={"one": Features(weights, pooling)(image, ["conv2_1", "conv4_2"])})


def weighted_sum(statistics: Statistics) -> Tensor:
    """Returns a scalar to which every value contributes with a weight of its own."""
    generator = torch.Generator().manual_seed(1)
    values = [value for layers in statistics.values() for value in layers.values()]
    factors = [torch.randn(value.shape, generator=generator).to(value) for value in values]
    return torch.stack([(f * value).sum() for f, value in zip(factors, values, strict=True)]).sum()


def by_autograd(weights: dict[str, Tensor], pooling: str) -> tuple[Tensor, Tensor]:
    image = IMAGE.double().requires_grad_()
    features = Features(weights, pooling)(image, layers_of(weights))
    targets = references(weights, pooling).references["one"]
    means = {name: features[name].mean((0, 2, 3))[:, None] for name in ("conv2_1", "conv3_1")}
    statistics = {
        "features": {name: features[name] for name in CONTENT},
        "gram_matrix": {name: gram_matrix(features[name]) for name in STYLE},
        "mean_and_gram_matrix": {
            name: torch.cat([mean, gram_matrix(features[name])], 1) for name, mean in means.items()
        },
        "squared_distance@one": {
            name: squared_distance(features[name], target) for name, target in targets.items()
        },
    }
    value = weighted_sum(statistics)
    return value.detach(), torch.autograd.grad(value, image)[0]


def by_hand(
    weights: dict[str, Tensor], pooling: str, dtype: torch.dtype, precision: str
) -> tuple[Tensor, Tensor]:
    image = IMAGE.to(dtype).requires_grad_()
    context = references({name: each.to(dtype) for name, each in weights.items()}, pooling)
    value = weighted_sum(FrozenFeatures(weights, pooling, precision)(image, NEEDS, context))
    return value.detach(), torch.autograd.grad(value, image)[0]


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


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_collecting_and_pulling_back_needs_no_autograd(
    precision: str, weights: dict[str, Tensor]
) -> None:
    network = FrozenFeatures(weights, "avg", precision)
    image = IMAGE.clone().requires_grad_()
    context = references(weights, "avg")
    expected = network(image, NEEDS, context)
    gradients = {
        kind: {name: torch.full_like(value, 1e-3) for name, value in layers.items()}
        for kind, layers in expected.items()
    }
    pairs = [
        (expected[kind][name], gradients[kind][name]) for kind in NEEDS for name in NEEDS[kind]
    ]
    values, given = zip(*pairs, strict=True)
    (expected_gradient,) = torch.autograd.grad(values, image, given)
    statistics, tape = network.collect(image, NEEDS, context)
    assert not any(value.requires_grad for each in statistics.values() for value in each.values())
    assert all(
        torch.equal(statistics[kind][name], expected[kind][name])
        for kind in NEEDS
        for name in NEEDS[kind]
    )
    assert torch.equal(network.pull_back(tape, gradients), expected_gradient)
    assert not tape.stages


def test_deepest_layer_may_have_several_statistics(weights: dict[str, Tensor]) -> None:
    """The gradients given there may have any layout, and are not changed."""
    exact = double(weights)
    image = IMAGE.double().requires_grad_()
    maps = Features(exact, "avg")(image, ["conv2_2"])["conv2_2"]
    generator = torch.Generator().manual_seed(2)
    given = [
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in (maps.shape, (128, 128))
    ]
    before = given[0].clone()
    (expected,) = torch.autograd.grad([maps, gram_matrix(maps)], image, given)
    needs = {"features": ["conv2_2"], "gram_matrix": ["conv2_2"]}
    statistics = FrozenFeatures(exact, "avg")(image, needs)
    values = [statistics[kind]["conv2_2"] for kind in needs]
    (gradient,) = torch.autograd.grad(values, image, given)
    torch.testing.assert_close(gradient, expected)
    assert torch.equal(given[0], before)


def test_bf16_points_where_float32_does(weights: dict[str, Tensor]) -> None:
    value, gradient = by_hand(weights, "avg", torch.float32, "bf16")
    expected, expected_gradient = by_hand(weights, "avg", torch.float32, "float32")
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0.03, atol=0)
    cosine = torch.cosine_similarity(gradient.flatten(), expected_gradient.flatten(), dim=0)
    assert cosine > 0.99


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_statistics_are_float32_in_every_precision(
    precision: str, weights: dict[str, Tensor]
) -> None:
    context = references(weights, "avg")
    statistics = FrozenFeatures(weights, "avg", precision)(IMAGE, NEEDS, context)
    for kind, values in statistics.items():
        for name, value in values.items():
            assert value.dtype == torch.float32
            block, channels = LAYERS[name].block, len(weights[f"{name}.bias"])
            height, width = (edge >> (block - 1) for edge in IMAGE.shape[-2:])
            assert value.shape == statistic(kind).shape(channels, height, width)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("kind", list(STATISTICS))
def test_what_is_kept_is_what_the_steps_say(
    kind: str, precision: str, weights: dict[str, Tensor]
) -> None:
    network = FrozenFeatures(weights, "max", precision)
    context = Context(references={"": {"conv2_2": torch.zeros(1, 128, 18, 26)}})
    _, tape = network.collect(IMAGE, {kind: ["conv2_2"]}, context)
    ((_, _, kept),) = tape.stages
    assert kept is not None
    assert [step.layer for step, *_ in kept.records] == list(network.layers[:4])
    for number, (step, maps, indices) in enumerate(kept.records):
        assert (indices is not None) == step.pooled == (number == 2)
        if number == 0:
            assert (step.kept, maps) == ("nothing", None)
        elif precision == "bf16":
            assert (step.kept, maps.dtype) == ("values", torch.bfloat16)
        elif number == 3 and kind != "features":
            assert (step.kept, maps.dtype) == ("values", torch.float32)
        else:
            assert (step.kept, maps.dtype) == ("mask", torch.bool)


def test_nothing_is_computed_below_the_deepest_layer_asked_for(weights: dict[str, Tensor]) -> None:
    computed = []
    network = FrozenFeatures(weights, "avg")
    for name, convolution in network.convolutions.items():
        convolution.register_forward_hook(lambda *_, name=name: computed.append(name))
    network(IMAGE, {"gram_matrix": ["conv2_1"]})
    assert computed == ["conv1_1", "conv1_2", "conv2_1"]
    assert network(IMAGE, {"features": [], "gram_matrix": []}) == {
        "features": {},
        "gram_matrix": {},
    }
    assert len(computed) == 3


def test_small_picture_and_unknown_layer_are_refused(weights: dict[str, Tensor]) -> None:
    network = FrozenFeatures(weights, "avg")
    with pytest.raises(UserError, match="8x40 pixels; conv5_1 needs at least 16x16"):
        network(torch.rand(1, 3, 8, 40), {"gram_matrix": ["conv5_1"]})
    with pytest.raises(UserError, match="unknown layer 'conv9_1'"):
        network(IMAGE, {"features": ["conv9_1"]})


def test_convolutions_leave_cudnn_as_they_found_it(weights: dict[str, Tensor]) -> None:
    before = torch.backends.cudnn.conv.fp32_precision
    FrozenFeatures(weights, "avg", "tf32")(IMAGE, {"features": ["conv1_1"]})
    assert torch.backends.cudnn.conv.fp32_precision == before


def test_network_is_freed_with_its_last_reference(weights: dict[str, Tensor]) -> None:
    """The statistics lead through autograd to the network, where Python finds no cycle."""
    network = FrozenFeatures(weights, "avg")
    reference = weakref.ref(network)
    image = IMAGE.clone().requires_grad_()
    statistics = network(image, {"gram_matrix": ["conv1_1", "conv2_1"]})
    statistics["gram_matrix"]["conv2_1"].sum().backward()
    del network, statistics
    assert reference() is None
