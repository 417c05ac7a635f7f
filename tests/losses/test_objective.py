"""The sum of the loss terms: its columns, its settings, and terms that are not evaluated."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, objective_of
from torch import Tensor

from pipeline.losses import loss_terms, make_terms
from pipeline.losses.feature_terms.style import StyleLoss
from pipeline.losses.objective import LARGEST_WEIGHT, MINIMISED, Objective
from pipeline.losses.pixel_terms.out_of_range import OutOfRange
from pipeline.losses.term import LossTerm, merged_needs
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.vgg import down_to

NAMES = tuple(term.name for term in loss_terms() if not term.optional)
SETTINGS: Mapping[str, Any] = {
    "content_layers": {"conv2_2": 2.0},
    "style_layers": {"conv1_1": 0.5, "conv2_1": 0.25},
    "content_weight": 0.1,
    "style_weight": 3.0,
    "variation_weight": 0.01,
    "range_weight": 0.5,
}


@pytest.fixture
def features(weights: dict[str, Tensor]) -> FrozenFeatures:
    return FrozenFeatures(down_to(weights, ["conv2_2"]), "avg")


def test_terms_are_found_in_their_modules_and_ordered() -> None:
    assert NAMES == ("content", "style", "variation", "out_of_range")
    assert [term.order for term in loss_terms()] == sorted({term.order for term in loss_terms()})
    keys = [key for term in loss_terms() for key in term.Settings.model_fields]
    assert {*SETTINGS, "convention"} <= set(keys)


def test_settings_of_the_terms_are_read_without_torch() -> None:
    code = "import sys, pipeline.losses as l; l.loss_terms(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_columns_are_the_total_the_terms_and_their_parts(
    features: FrozenFeatures, images: tuple[Tensor, Tensor]
) -> None:
    objective = objective_of(features, images, **SETTINGS)
    losses = objective(images[1] * 1.5)
    parts = ["content_conv2_2", "style_conv1_1", "style_conv2_1"]
    assert list(losses) == [*objective.names, MINIMISED]
    assert objective.names == [
        "total",
        *NAMES,
        *parts,
        *(f"{part}_weighted" for part in parts),
    ]
    torch.testing.assert_close(
        losses["style"], 3 * (losses["style_conv1_1"] / 2 + losses["style_conv2_1"] / 4)
    )
    torch.testing.assert_close(losses["content_conv2_2_weighted"], 0.2 * losses["content_conv2_2"])
    torch.testing.assert_close(losses["total"], sum(losses[name] for name in NAMES))
    assert all(losses[name] > 0 for name in ("content", "style", "variation", "out_of_range"))


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 3e-7, 7.0, 1e12, 1e30])
def test_common_factor_of_the_weights_changes_the_unit_and_not_what_is_minimised(
    factor: float, features: FrozenFeatures, images: tuple[Tensor, Tensor]
) -> None:
    """To the bit, whether all weights of the terms have it or those of the layers."""

    def minimised(settings: Mapping[str, Any]) -> tuple[Tensor, Tensor, float, float]:
        image = (images[1] * 1.5).requires_grad_()
        objective = objective_of(features, images, **settings)
        losses = objective(image)
        (gradient,) = torch.autograd.grad(losses[MINIMISED], image)
        total = float(losses["total"].detach()) / objective.unit
        return losses[MINIMISED], gradient, total, max(objective.factors["style"].values())

    keys = ("content_weight", "style_weight", "variation_weight")  # range_weight is relative
    scaled = {key: SETTINGS[key] * factor for key in keys}
    of_layers = {"content_weight": 0.0, "variation_weight": 0.0, "range_weight": 0.0}
    layers = {name: weight * factor for name, weight in SETTINGS["style_layers"].items()}
    for changed, settings in (
        (scaled, SETTINGS),
        ({"style_layers": layers}, SETTINGS | of_layers),
        ({"convention": "paper", **scaled}, {**SETTINGS, "convention": "paper"}),
    ):
        base = {**settings, **(of_layers if "style_layers" in changed else {})}
        loss, gradient, total, largest = minimised({**base, **changed})
        expected_loss, expected_gradient, expected_total, _ = minimised(base)
        assert torch.equal(loss, expected_loss)
        assert torch.equal(gradient, expected_gradient)
        assert total == pytest.approx(expected_total, rel=1e-6)
        assert largest == pytest.approx(LARGEST_WEIGHT)


def test_loss_of_weight_0_is_recorded_and_adds_nothing(
    features: FrozenFeatures, images: tuple[Tensor, Tensor]
) -> None:
    losses = objective_of(features, images, **(SETTINGS | {"content_weight": 0}))(images[1])
    assert losses["content"] == losses["content_conv2_2_weighted"] == 0
    assert losses["content_conv2_2"] > 0


def test_term_without_weight_and_parts_is_not_evaluated(
    features: FrozenFeatures, images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> dict[str, Tensor]:
        raise AssertionError

    monkeypatch.setattr(OutOfRange, "parts", refuse)
    assert objective_of(features, images, variation_weight=1.0)(images[0])["out_of_range"] == 0


def test_targets_move_with_the_objective_and_are_not_saved(
    weights: dict[str, Tensor], images: tuple[Tensor, Tensor]
) -> None:
    features = FrozenFeatures(down_to(weights, ["conv1_1"]), "avg")
    objective = objective_of(features, images, style_layers=["conv1_1"], style_weight=1.0)
    single = float(objective(images[0])["total"])
    assert objective.state_dict() == {}
    objective.double()
    (style,) = (term for term in objective.terms if term.name == "style")
    assert style.targets["conv1_1@style"].dtype == torch.float64
    assert float(objective(images[0].double())["total"]) == pytest.approx(single, rel=1e-4)


def test_objectives_from_the_same_terms_have_targets_of_their_own(
    features: FrozenFeatures, images: tuple[Tensor, Tensor]
) -> None:
    terms = make_terms(SETTINGS)
    first = Objective(features, terms, {"content": images[0], "style": images[0]})
    before = first(images[0])["total"]
    Objective(features, terms, {"content": images[1], "style": images[1]})
    assert first(images[0])["total"] == before


def test_needs_of_several_terms_are_merged() -> None:
    def style(*layers: str) -> LossTerm:
        return StyleLoss({"style_layers": list(layers), "style_weight": 1.0})

    terms = [style("conv1_1", "conv2_1"), style("conv2_1", "conv3_1"), *make_terms(SETTINGS)[:1]]
    assert merged_needs(terms) == {
        "gram_matrix": ("conv1_1", "conv2_1", "conv3_1"),
        "squared_distance@content": ("conv2_2",),
    }


def test_range_loss_alone_is_nothing_to_optimise() -> None:
    assert [term.name for term in loss_terms() if not term.sufficient] == ["out_of_range"]
