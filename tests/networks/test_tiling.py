"""Tiled losses and gradients against those of the whole image."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_frozen import small_weights
from torch import Tensor

from pipeline.losses import make_terms
from pipeline.losses.objective import MINIMISED, Objective
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.frozen.stages import STAGES, divided, forward_steps
from pipeline.networks.frozen.windows import pieces, whole_window
from pipeline.networks.layers import LAYERS
from pipeline.networks.vgg import Features, layers_of

PAPER = {
    "content_layers": {"conv4_2": 1.0},
    "style_layers": dict.fromkeys(("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"), 0.2),
}
EVERY_BLOCK = {
    "content_layers": {"conv1_2": 0.5, "conv3_2": 0.5},
    "style_layers": dict.fromkeys(("conv1_1", "conv2_2", "conv3_2", "conv4_2"), 0.25),
    "moments_weight": 3.0,
    "wasserstein_weight": 2.0,
    "variation_weight": 1.0,
    "range_weight": 10.0,
}
REGIONS = {
    **PAPER,
    "style": [
        {"image": "a", "weight": 2.0, "content_mask": "m", "style_mask": "m"},
        {"image": "b", "content_mask": "n", "layers": ["conv1_1", "conv4_1", "conv5_1"]},
    ],
}
SHALLOW = {"content_layers": {"conv2_2": 1.0}, "style_layers": {"conv1_2": 1.0}}
COMBINATIONS: list[tuple[tuple[int, int], int, str, dict[str, Any], str]] = [
    ((160, 208), 64, "avg", PAPER, "vgg19-small"),
    ((161, 203), 64, "avg", PAPER, "vgg19-small"),
    ((97, 330), 64, "max", PAPER, "vgg19-small"),
    ((129, 131), 64, "avg", EVERY_BLOCK, "vgg19-small"),
    ((150, 110), 64, "max", EVERY_BLOCK, "vgg19-small"),
    ((177, 139), 64, "avg", REGIONS, "vgg19-small"),
    ((64, 200), 96, "max", REGIONS, "vgg19-small"),
    ((90, 121), 32, "avg", SHALLOW, "vgg19-small"),
    ((65, 66), 64, "avg", SHALLOW, "vgg19-small"),
    ((145, 161), 64, "avg", PAPER, "vgg19"),
    ((97, 181), 80, "max", EVERY_BLOCK, "vgg19"),
    ((130, 98), 96, "avg", REGIONS, "vgg19"),
]

TOLERANCES = {torch.float32: (1e-5, 1e-6, 1e-5), torch.float64: (1e-12, 1e-12, 1e-12)}
"""Of the loss of a part, of the total, and of the gradient, whose unit is its largest value."""


def random_tensor(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def pictures(size: tuple[int, int]) -> dict[str, Tensor]:
    """Returns a content image, style images of other sizes, and masks, one black in its half."""
    height, width = size
    mask = random_tensor(3, 1, 1, *size) * (torch.arange(width) < width // 2)
    styles = {
        role: random_tensor(number, 1, 3, height + 30 * number, width - 20) ** (3 * number)
        for number, role in enumerate(("style", "style_1", "style_2"), 1)
    }
    return {
        "content": random_tensor(0, 1, 3, *size),
        **styles,
        "style_1_content_mask": mask,
        "style_2_content_mask": 1 - mask,
        "style_1_mask": random_tensor(4, 1, 1, *styles["style_1"].shape[-2:]),
    }


def evaluated(
    weights: dict[str, Tensor],
    size: tuple[int, int],
    tile: int | None,
    pooling: str,
    settings: dict[str, Any],
    dtype: torch.dtype,
    precision: Any = "float32",
    seed: int = 9,
) -> tuple[dict[str, Tensor], Tensor]:
    """Returns the losses of an image and the gradient."""
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    features = FrozenFeatures(weights, pooling, precision, tile=tile)
    images = {role: image.to(dtype) for role, image in pictures(size).items()}
    terms = make_terms({"content_weight": 1.0, "style_weight": 2.0, **settings})
    objective = Objective(features, terms, images)
    image = random_tensor(seed, 1, 3, *size).to(dtype).requires_grad_()
    losses = objective(image)
    (gradient,) = torch.autograd.grad(losses[MINIMISED], image)
    return {name: loss.detach() for name, loss in losses.items()}, gradient


@pytest.mark.parametrize(("size", "tile", "pooling", "settings", "network"), COMBINATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiles_have_the_loss_and_the_gradient_of_the_whole_image(
    size: tuple[int, int],
    tile: int,
    pooling: str,
    settings: dict[str, Any],
    network: str,
    dtype: torch.dtype,
    weights: dict[str, Tensor],
) -> None:
    """Rounding in float32 moves an activation across 0 in some images, which changes the gradient
    around it, in tiles and without: so one image of three has to be free of it."""
    chosen = weights if network == "vgg19" else small_weights()
    of_part, of_loss, of_gradient = TOLERANCES[dtype]
    differences = []
    for seed in (9, 10, 11) if dtype == torch.float32 else (9,):
        results = [
            evaluated(chosen, size, each, pooling, settings, dtype, seed=seed)
            for each in (tile, None)
        ]
        (losses, gradient), (expected, expected_gradient) = results
        for name, loss in expected.items():
            assert losses[name].item() == pytest.approx(loss.item(), rel=of_part), name
        assert losses["total"].item() == pytest.approx(expected["total"].item(), rel=of_loss)
        largest = expected_gradient.abs().max()
        differences.append(float((gradient - expected_gradient).abs().max() / largest))
        if differences[-1] <= of_gradient:
            return
    pytest.fail(f"the gradients differ by {differences}")


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_tiles_in_bf16_have_nearly_the_loss_of_the_whole_image(
    pooling: str, weights: dict[str, Tensor]
) -> None:
    arguments = (110, 150), pooling, PAPER, torch.float32, "bf16"
    results = [
        evaluated(weights, arguments[0], tile, *arguments[1:])  # type: ignore[arg-type]
        for tile in (64, None)
    ]
    (losses, gradient), (expected, expected_gradient) = results
    assert losses["total"].item() == pytest.approx(expected["total"].item(), rel=1e-3)
    cosine = torch.cosine_similarity(gradient.flatten(), expected_gradient.flatten(), dim=0)
    assert cosine > 0.999


def test_features_are_put_together_from_tiles(weights: dict[str, Tensor]) -> None:
    """As those of the content image are, which are the targets of its loss."""
    exact = {name: tensor.double() for name, tensor in weights.items()}
    image, again = (random_tensor(1, 1, 3, 130, 101).requires_grad_() for _ in range(2))
    layers = ["conv1_1", "conv3_4", "conv4_4", "conv5_2"]
    values = FrozenFeatures(exact, "avg", tile=64)(image, {"features": layers})["features"]
    expected = Features(exact, "avg")(again, layers)
    for layer in layers:
        torch.testing.assert_close(values[layer], expected[layer], rtol=1e-11, atol=1e-13)
    of_values = [random_tensor(number, *values[name].shape) for number, name in enumerate(layers)]
    (gradient,) = torch.autograd.grad([values[name] for name in layers], image, of_values)
    (known,) = torch.autograd.grad([expected[name] for name in layers], again, of_values)
    torch.testing.assert_close(gradient, known, rtol=1e-9, atol=1e-12)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 8), st.integers(0, 40))
def test_pieces_count_every_position_once(
    height: int, width: int, edge_in_grids: int, halo: int
) -> None:
    grid = 4
    edge = grid * edge_in_grids
    counts = torch.zeros(height, width, dtype=torch.int64)
    for piece in pieces((height, width), edge, halo, grid):
        piece.inner.of(counts).add_(1)
        assert max(piece.inner.size) <= edge or piece.is_whole
        for inner, outer, end in (
            (piece.inner.top, piece.outer.top, 0),
            (piece.outer.bottom, piece.inner.bottom, height),
            (piece.inner.left, piece.outer.left, 0),
            (piece.outer.right, piece.inner.right, width),
        ):
            assert inner - outer >= halo or end in (inner, outer)
        for window in piece:
            assert window.top % grid == window.left % grid == 0
            assert window.bottom % grid == 0 or window.bottom == height
            assert window.right % grid == 0 or window.right == width
    assert bool((counts == 1).all())


@pytest.mark.parametrize("network", ["vgg19", "vgg19-small"])
def test_halos_are_as_wide_as_what_a_layer_sees(network: str, weights: dict[str, Tensor]) -> None:
    """A position outside of a piece with its halo has no influence on what the piece counts."""
    chosen = weights if network == "vgg19" else small_weights()
    exact = {name: tensor.double() for name, tensor in chosen.items()}
    steps = forward_steps(layers_of(exact), {"gram_matrix": ["conv5_1"]})
    for stage in divided(steps, (512, 512), 64):
        reach = 0
        for step in reversed(stage.steps):
            reach = (reach + 1) * (2 if step.pooled else 1)
        inner = [p for p in stage.pieces if p.outer.top > 0 and p.outer.bottom < 512 >> stage.block]
        widths = {piece.inner.top - piece.outer.top for piece in inner}
        assert all(reach <= width < reach + 2**stage.poolings for width in widths)
    assert {stage.block for stage in divided(steps, (512, 512), 64)} == set(STAGES)


def test_image_no_larger_than_a_tile_is_computed_whole() -> None:
    steps = forward_steps(list(LAYERS), {"gram_matrix": ["conv5_1"]})
    for size, tile in product([(64, 48), (500, 500)], [512, None]):
        (stage,) = divided(steps, size, tile)
        (piece,) = stage.pieces
        assert piece.inner == piece.outer == whole_window(size)
        assert stage.steps == steps
