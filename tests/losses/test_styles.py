"""Several styles with weights, layers, sizes and masks, against the formulas in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_params, write_params
from torch import Tensor
from torch.nn.functional import avg_pool2d

from pipeline import paths
from pipeline.config.params import read_params
from pipeline.config.plan import read_plan
from pipeline.errors import UserError
from pipeline.losses import make_terms
from pipeline.losses.feature_terms.style import StyleLoss, gram_matrix
from pipeline.losses.objective import MINIMISED, Objective
from pipeline.losses.styles import styles_of
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.frozen.gram_matrix import add_gram_matrix_gradient, gram_matrix_of
from pipeline.networks.frozen.statistics import position_weights
from pipeline.networks.layers import LAYERS, Context
from pipeline.networks.vgg import Features, down_to
from pipeline.transfer.build import build_objective, read_inputs, sizes

SIZE = (37, 53)
"""Odd edges: every pooling drops a row or a column."""
LAYER_WEIGHTS = {"conv1_1": 0.5, "conv2_1": 0.3, "conv3_1": 0.2}
STYLES = [
    {"image": "a", "weight": 1.0},
    {"image": "b", "weight": 3.0, "layers": ["conv1_1", "conv3_1"]},
    {"image": "c", "weight": 0.5, "layers": ["conv2_1", "conv3_1"]},
]
NONE = {"content_layers": {}, "content_weight": 0.0, "style_weight": 2.0}


def random_tensor(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


IMAGES = {
    "content": random_tensor(0, 1, 3, *SIZE),
    "style_1": random_tensor(1, 1, 3, *SIZE),
    "style_2": random_tensor(2, 1, 3, 29, 41) ** 2,
    "style_3": random_tensor(3, 1, 3, 24, 24).sqrt(),
}
IMAGE = random_tensor(4, 1, 3, *SIZE)
GUIDE = random_tensor(5, 1, 1, *SIZE) * (torch.arange(SIZE[1]) > 20)


@pytest.fixture(scope="module")
def exact(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network in float64, down to conv3_1."""
    return {name: tensor.double() for name, tensor in down_to(weights, ["conv3_1"]).items()}


def guided_gram_matrix(features: Tensor, guide: Tensor, layer: str) -> Tensor:
    """Returns Σ_k t_k² f_k f_kᵀ / Σ_k t_k², with t averaged as the network pools."""
    for _ in range(LAYERS[layer].block - 1):
        guide = avg_pool2d(guide, 2)
    total = torch.zeros((features.shape[1],) * 2, dtype=features.dtype)
    for y in range(features.shape[2]):
        for x in range(features.shape[3]):
            vector = features[0, :, y, x]
            total = total + guide[0, 0, y, x] ** 2 * torch.outer(vector, vector)
    return total / guide.square().sum()


def gram_matrices(weights: dict[str, Tensor], image: Tensor) -> dict[str, Tensor]:
    features = Features(weights, "avg")(image, list(LAYER_WEIGHTS))
    return {layer: gram_matrix(features[layer]) for layer in LAYER_WEIGHTS}


def error(gram: Tensor, target: Tensor, layer: str) -> Tensor:
    return (gram - target).square().sum() / LAYERS[layer].channels_out ** 2


def objective(weights: dict[str, Tensor], styles: Any, **settings: Any) -> Objective:
    terms = make_terms({**NONE, "style_layers": LAYER_WEIGHTS, "style": styles, **settings})
    roles = ["style"] if len(styles) == 1 else [f"style_{n + 1}" for n in range(len(styles))]
    images = {"content": IMAGES["content"]} | {
        role: IMAGES[f"style_{number}"] for number, role in enumerate(roles, 1)
    }
    images |= settings.get("masks", {})
    return Objective(FrozenFeatures(weights, "avg"), terms, images)


@pytest.mark.parametrize("mix", ["losses", "gram_matrices"])
def test_several_styles_mix_as_the_setting_says(mix: str, exact: dict[str, Tensor]) -> None:
    image = IMAGE.clone().requires_grad_()
    losses = objective(exact, STYLES, style_mix=mix)(image)
    (gradient,) = torch.autograd.grad(losses["style"], image)
    again = IMAGE.clone().requires_grad_()
    own = gram_matrices(exact, again)
    targets = [gram_matrices(exact, IMAGES[f"style_{number}"]) for number in (1, 2, 3)]
    expected = torch.zeros((), dtype=torch.float64)
    for layer, weight in LAYER_WEIGHTS.items():
        having = [n for n in range(3) if layer in STYLES[n].get("layers", LAYER_WEIGHTS)]
        total = sum(STYLES[n]["weight"] for n in having)
        shares = {n: STYLES[n]["weight"] / total for n in having}
        assert sum(shares.values()) == pytest.approx(1)
        if mix == "losses":
            of_layer = sum(
                s * error(own[layer], targets[n][layer], layer) for n, s in shares.items()
            )
        else:
            mean = sum(share * targets[n][layer] for n, share in shares.items())
            of_layer = error(own[layer], mean, layer)
        assert losses[f"style_{layer}"].item() == pytest.approx(of_layer.item(), rel=1e-9)
        expected = expected + 2.0 * weight * of_layer
    assert losses["style"].item() == pytest.approx(expected.item(), rel=1e-9)
    (expected_gradient,) = torch.autograd.grad(expected, again)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-15)


def test_only_the_ratio_of_the_weights_of_styles_counts(exact: dict[str, Tensor]) -> None:
    scaled = [{**style, "weight": 8.0 * float(style["weight"])} for style in STYLES]
    one, other = (objective(exact, styles)(IMAGE)["total"] for styles in (STYLES, scaled))
    assert one.item() == pytest.approx(other.item(), rel=1e-12)
    single = [{"image": "a", "weight": 17.0}]
    plain = objective(exact, ["a"])(IMAGE)["total"]
    assert torch.equal(objective(exact, single)(IMAGE)["total"], plain)


def test_single_style_is_the_loss_of_the_paper_to_the_bit(weights: dict[str, Tensor]) -> None:
    features = FrozenFeatures(down_to(weights, ["conv3_1"]), "avg")
    settings = {**NONE, "style_layers": LAYER_WEIGHTS}
    images = {role: IMAGES[role].float() for role in ("content", "style_1")}
    images = {"content": images["content"], "style": images["style_1"]}
    collected = [
        features(image, {"gram_matrix": list(LAYER_WEIGHTS)})["gram_matrix"]
        for image in (IMAGE.float(), images["style"])
    ]
    term = StyleLoss(settings)
    for style in ({}, {"style": "a"}, {"style": ["a"]}, {"style_mix": "gram_matrices"}):
        losses = Objective(features, make_terms(settings | style), images)(IMAGE.float())
        for layer in LAYER_WEIGHTS:
            grams = (each[layer] for each in collected)
            expected = term.loss(*grams, LAYERS[layer].channels_out)
            assert torch.equal(losses[f"style_{layer}"], expected)


@pytest.mark.parametrize("shape", [(1, 5, 7, 6), (1, 3, 1, 9), (1, 4, 12, 1)])
def test_guided_gram_matrix_is_its_definition_and_so_is_its_gradient(
    shape: tuple[int, int, int, int],
) -> None:
    maps = (random_tensor(0, *shape) - 0.4).relu().contiguous(memory_format=torch.channels_last)
    guide = random_tensor(1, 1, 1, *shape[2:])
    guide.view(-1)[::3] = 0
    tracked = maps.clone().requires_grad_()
    expected = guided_gram_matrix(tracked, guide, "conv1_1")
    weights = position_weights(guide)
    torch.testing.assert_close(gram_matrix_of(maps, weights), expected, rtol=1e-9, atol=0)
    of_gram = random_tensor(2, shape[1], shape[1]) - 0.5
    (gradient,) = torch.autograd.grad(expected, tracked, of_gram)
    pulled = add_gram_matrix_gradient(of_gram, None, maps, weights)
    torch.testing.assert_close(pulled, gradient, rtol=1e-9, atol=1e-15)
    before = torch.ones_like(maps)
    pulled = add_gram_matrix_gradient(of_gram, before, maps, weights)
    torch.testing.assert_close(pulled, gradient + 1, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_guides_go_through_the_poolings_of_the_network(
    pooling: str, exact: dict[str, Tensor]
) -> None:
    layers = ["conv1_1", "conv2_1", "conv3_1"]
    needs = {"gram_matrix@one": layers, "features": ["conv2_1"], "gram_matrix": ["conv2_1"]}
    image, again = (IMAGE.clone().requires_grad_() for _ in range(2))
    statistics = FrozenFeatures(exact, pooling)(
        image, needs, Context({"one": GUIDE, "other": GUIDE})
    )
    features = Features(exact, pooling)(again, layers)
    expected = {
        "gram_matrix@one": {n: guided_gram_matrix(features[n], GUIDE, n) for n in layers},
        "features": {"conv2_1": features["conv2_1"]},
        "gram_matrix": {"conv2_1": gram_matrix(features["conv2_1"])},
    }
    values, wanted, given = [], [], []
    for kind, each in expected.items():
        for layer, value in each.items():
            torch.testing.assert_close(statistics[kind][layer], value, rtol=1e-9, atol=1e-14)
            values.append(statistics[kind][layer])
            wanted.append(value)
            given.append(random_tensor(len(given), *value.shape) - 0.5)
    (gradient,) = torch.autograd.grad(values, image, given)
    (expected_gradient,) = torch.autograd.grad(wanted, again, given)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


def test_guided_gram_matrices_of_bf16_are_nearly_those_of_float32(
    weights: dict[str, Tensor],
) -> None:
    needs = {"gram_matrix@one": ["conv1_1", "conv2_1", "conv3_1"]}
    results = []
    for precision in ("float32", "bf16"):
        network = FrozenFeatures(down_to(weights, ["conv3_1"]), "avg", precision)  # type: ignore[arg-type]
        image = IMAGE.float().requires_grad_()
        grams = network(image, needs, Context({"one": GUIDE.float()}))["gram_matrix@one"]
        total = torch.stack([gram.square().mean() for gram in grams.values()]).sum()
        results.append((grams, torch.autograd.grad(total, image)[0]))
    for layer, gram in results[0][0].items():
        assert results[1][0][layer].dtype == torch.float32
        difference = (results[1][0][layer] - gram).norm() / gram.norm()
        assert difference < 0.01
    (one, other) = (gradient.flatten() for _, gradient in results)
    assert torch.cosine_similarity(one, other, dim=0) > 0.99


@pytest.mark.parametrize("level", [1.0, 0.3])
def test_uniform_mask_equals_no_mask(level: float, exact: dict[str, Tensor]) -> None:
    masked = [{"image": "a", "content_mask": "m", "style_mask": "m"}]
    masks = {
        f"style{kind}_mask": torch.full((1, 1, *SIZE), level).double() for kind in ("", "_content")
    }
    image, again = (IMAGE.clone().requires_grad_() for _ in range(2))
    loss = objective(exact, masked, masks=masks)(image)["total"]
    expected = objective(exact, ["a"])(again)["total"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    gradients = (torch.autograd.grad(loss, image)[0], torch.autograd.grad(expected, again)[0])
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-15)


def test_masked_styles_compare_regions_of_both_images(exact: dict[str, Tensor]) -> None:
    style_guide = random_tensor(6, 1, 1, 29, 41) * (torch.arange(29) < 15)[:, None]
    styles = [{"image": "a", "content_mask": "m"}, {"image": "b", "weight": 2, "style_mask": "m"}]
    masks = {"style_1_content_mask": GUIDE, "style_2_mask": style_guide}
    losses = objective(exact, styles, masks=masks)(IMAGE)
    features = [
        Features(exact, "avg")(image, list(LAYER_WEIGHTS))
        for image in (IMAGE, IMAGES["style_1"], IMAGES["style_2"])
    ]
    for layer in LAYER_WEIGHTS:
        own, first, second = (each[layer] for each in features)
        region = error(guided_gram_matrix(own, GUIDE, layer), gram_matrix(first), layer)
        target = guided_gram_matrix(second, style_guide, layer)
        whole = error(gram_matrix(own), target, layer)
        assert losses[f"style_{layer}"].item() == pytest.approx(
            float(region + 2 * whole) / 3, rel=1e-9
        )


def test_nothing_outside_of_a_mask_is_moved_by_its_style(exact: dict[str, Tensor]) -> None:
    """Up to the reach of the deepest layer: 12 pixels of conv3_1, and 4 of its poolings."""
    mask = torch.zeros((1, 1, *SIZE), dtype=torch.float64)
    mask[..., :16] = 1
    styles = [{"image": "a", "content_mask": "m"}]
    image = IMAGE.clone().requires_grad_()
    loss = objective(exact, styles, masks={"style_content_mask": mask})(image)[MINIMISED]
    (gradient,) = torch.autograd.grad(loss, image)
    assert not gradient[..., 32:].any()
    assert gradient[..., :16].abs().min() > 0


def experiment(weights_file: Path, workspace: Path, **settings: Any) -> Any:
    params = tiny_params(weights_file)
    params["experiments"] = {"first": {"content": "chelsea", **settings}}
    params["figures"] = {}
    write_params(workspace, params)
    return read_params().experiments["first"]


def test_scale_changes_the_size_in_which_a_style_is_read(
    prepared: Path, weights_file: Path
) -> None:
    style = [{"image": "gravel", "scale": 0.5}, {"image": "gravel", "scale": 3}, "coffee"]
    settings = experiment(weights_file, prepared, style=style)
    assert sizes(settings) == {
        "content": (21, 32),
        "style_1": (10, 16),
        "style_2": (63, 96),
        "style_3": (21, 32),
    }
    images = read_inputs(settings).images
    assert {role: tuple(image.shape[2:]) for role, image in images.items()} == sizes(settings)
    own = settings.model_copy(update={"style_resize": "own"})
    assert sizes(own)["style_1"] == (16, 16)
    assert sizes(own, 64)["style_2"] == (192, 192)
    losses = [
        build_objective(
            experiment(weights_file, prepared, style={"image": "gravel", "scale": scale}),
            paths.WEIGHTS_FILE,
            read_inputs(read_params().experiments["first"]),
            torch.device("cpu"),
            "float32",
        )(images["content"])["style"]
        for scale in (1.0, 2.0)
    ]
    assert losses[0] != losses[1]


def test_plain_style_is_written_as_its_name(prepared: Path, weights_file: Path) -> None:
    forms = "gravel", ["gravel"], {"image": "gravel"}, [{"image": "gravel", "weight": 1}]
    plans = []
    for style in forms:
        experiment(weights_file, prepared, style=style)
        plans.append(paths.plan("first").read_bytes())
        assert json.loads(plans[-1])["settings"]["style"] == "gravel"
        assert read_plan("first").settings.model_dump()["style"] == "gravel"
    assert plans == [plans[0]] * len(forms)
    mixed = ["gravel", {"image": "coffee", "content_mask": {"image": "chelsea"}, "scale": 2.0}]
    settings = experiment(weights_file, prepared, style=mixed)
    assert settings.model_dump(mode="json")["style"] == mixed
    assert read_plan("first").settings == settings
    assert settings.images == {
        "content": "chelsea",
        "style_1": "gravel",
        "style_2": "coffee",
        "style_2_content_mask": "chelsea",
    }


def test_layer_of_no_style_is_refused_even_where_its_loss_has_no_weight(
    prepared: Path, weights_file: Path
) -> None:
    style = {"image": "gravel", "layers": ["conv1_1"]}
    for weight in (1.0, 0.0):
        with pytest.raises(UserError, match=r"no style has the layer conv2_1 of style_layers"):
            experiment(weights_file, prepared, style=style, style_weight=weight)
    assert list(styles_of({"style": style})) == ["style"]
