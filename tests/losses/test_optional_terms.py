"""Loss terms that are off by default, against their definitions written out in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from conftest import objective_of
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

from pipeline.losses import loss_terms
from pipeline.losses.feature_terms.histogram import HistogramLoss
from pipeline.losses.feature_terms.moments import MomentLoss
from pipeline.losses.feature_terms.sliced_wasserstein import SlicedWassersteinLoss, directions
from pipeline.losses.feature_terms.style import gram_matrix
from pipeline.losses.pixel_terms.laplacian import LaplacianLoss
from pipeline.losses.pixel_terms.spectrum import SpectrumLoss
from pipeline.losses.pixel_terms.total_variation import TotalVariation
from pipeline.losses.styles import StyleTerm
from pipeline.losses.term import LossTerm
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.layers import LAYERS
from pipeline.networks.vgg import down_to

Array = NDArray[np.float64]
WEIGHTS = {"conv1_1": 0.7, "conv2_1": 0.2}
CHANNELS = {"conv1_1": 5, "conv2_1": 4}
NEVER_ACTIVE = 2
"""A filter of both layers whose activations are all 0."""
SIZES = [(11, 7), (9, 14), (10, 10)]
"""Of the style image; the first is the image's own size."""
TERMS: dict[type[LossTerm], dict[str, Any]] = {
    MomentLoss: {"moments_weight": 1.0, "moments_layers": WEIGHTS},
    HistogramLoss: {"histogram_weight": 1.0, "histogram_layers": WEIGHTS},
    SlicedWassersteinLoss: {
        "sliced_wasserstein_weight": 1.0,
        "sliced_wasserstein_layers": WEIGHTS,
    },
    LaplacianLoss: {"laplacian_weight": 1.0, "laplacian_pooling": 2},
    SpectrumLoss: {"spectrum_weight": 1.0},
    TotalVariation: {"variation_weight": 1.0},
}
FEATURE_TERMS = [term for term in TERMS if issubclass(term, StyleTerm)]


def random_image(seed: int, size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((1, 3, *size), generator=generator, dtype=torch.float64)


def collect(image: Tensor, needs: Mapping[str, Any], _: object = None) -> dict[str, Any]:
    """Stands for the network: a random convolution and ReLU for each layer."""
    features = {}
    layers = [layer for layer in WEIGHTS if any(layer in names for names in needs.values())]
    for number, layer in enumerate(layers):
        generator = torch.Generator().manual_seed(number)
        shape = (CHANNELS[layer], 3, 3, 3)
        kernels = torch.randn(shape, generator=generator, dtype=torch.float64)
        biases = torch.zeros(CHANNELS[layer], dtype=torch.float64)
        biases[NEVER_ACTIVE] = -100
        features[layer] = conv2d(image, kernels, biases, padding=1).relu()
    means = {
        layer: torch.cat([maps.mean((0, 2, 3))[:, None], gram_matrix(maps)], 1)
        for layer, maps in features.items()
    }
    return {kind: means if kind == "mean_and_gram_matrix" else features for kind in needs}


def loss_of(kind: type[LossTerm], image: Tensor, content: Tensor, style: Tensor) -> Tensor:
    """Returns the weighted sum of the parts of a term."""
    term = kind(TERMS[kind])
    term.set_targets({"content": content, "style": style}, collect)
    parts = term.parts(image, collect(image, term.needs))
    return sum((term.part_weights[part] * loss for part, loss in parts.items()), torch.zeros(()))


def rows(image: Tensor, layer: str) -> Array:
    maps = collect(image, {"features": list(WEIGHTS)})["features"][layer]
    return np.asarray(maps.numpy().reshape(CHANNELS[layer], -1))


def quantiles_at(count: int, values: Array) -> Array:
    """Returns quantiles at (k + ½) / count of a sample whose k-th value is at (k + ½) / M."""
    ordered = np.sort(values)
    places = (np.arange(len(ordered)) + 0.5) / len(ordered)
    return np.interp((np.arange(count) + 0.5) / count, places, ordered)


def moments(image: Tensor, content: Tensor, style: Tensor) -> float:
    """Galerne et al. 2024: squared distances of the mean and the deviation of each filter."""
    loss = 0.0
    for layer, weight in WEIGHTS.items():
        for own, other in zip(rows(image, layer), rows(style, layer), strict=True):
            distance = (own.mean() - other.mean()) ** 2 + (own.std() - other.std()) ** 2
            loss += weight * distance / LAYERS[layer].channels_out
    return loss


def histogram(image: Tensor, content: Tensor, style: Tensor) -> float:
    """Risser et al. 2017, eq. 5: distance to the activations with the style's histogram."""
    loss = 0.0
    for layer, weight in WEIGHTS.items():
        for own, other in zip(rows(image, layer), rows(style, layer), strict=True):
            remapped = np.empty_like(own)
            remapped[own.argsort(kind="stable")] = quantiles_at(len(own), other)
            loss += weight * ((own - remapped) ** 2).mean() / LAYERS[layer].channels_out
    return loss


def sliced_wasserstein(image: Tensor, content: Tensor, style: Tensor) -> float:
    """Heitz et al. 2021, eq. 6: mean over directions of the distance of sorted projections."""
    loss = 0.0
    for layer, weight in WEIGHTS.items():
        own, other = rows(image, layer), rows(style, layer)
        distances = [
            ((np.sort(v @ own) - quantiles_at(own.shape[1], v @ other)) ** 2).mean()
            for v in directions(len(own), torch.float64).numpy()
        ]
        loss += weight * float(np.mean(distances))
    return loss


def laplacian(image: Tensor, content: Tensor, style: Tensor) -> float:
    """Li et al. 2017, eq. 4: distance of the Laplacians D * of the pooled images."""
    both = []
    for each in (image, content):
        pixels = each.numpy()[0].sum(0)
        height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
        p = [
            [pixels[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean() for x in range(width)]
            for y in range(height)
        ]
        both.append(
            [
                4 * p[y][x] - p[y - 1][x] - p[y + 1][x] - p[y][x - 1] - p[y][x + 1]
                for y in range(1, height - 1)
                for x in range(1, width - 1)
            ]
        )
    return float(((np.array(both[0]) - np.array(both[1])) ** 2).mean())


def spectrum(image: Tensor, content: Tensor, style: Tensor) -> float:
    """Gonthier et al. 2020, eq. 8 and 9: distance to the nearest image with the spectrum."""
    other = style
    if style.shape != image.shape:
        other = interpolate(style, size=image.shape[-2:], mode="bilinear", antialias=True)
    own, goal = np.fft.fft2(image.numpy()[0]), np.fft.fft2(other.numpy()[0])
    product = (own * goal.conj()).sum(0)
    nearest = np.fft.ifft2(product / np.abs(product) * goal).real
    return float(((image.numpy()[0] - nearest) ** 2).mean())


def total_variation(image: Tensor, content: Tensor, style: Tensor) -> float:
    """Mahendran & Vedaldi 2015, with β = 2: squared differences of neighbours."""
    pixels = image.numpy()
    down = [(pixels[..., y + 1, :] - pixels[..., y, :]) ** 2 for y in range(pixels.shape[2] - 1)]
    right = [(pixels[..., x + 1] - pixels[..., x]) ** 2 for x in range(pixels.shape[3] - 1)]
    return float(np.mean(down) + np.mean(right))


DEFINITIONS = {
    MomentLoss: moments,
    HistogramLoss: histogram,
    SlicedWassersteinLoss: sliced_wasserstein,
    LaplacianLoss: laplacian,
    SpectrumLoss: spectrum,
    TotalVariation: total_variation,
}


@pytest.mark.parametrize("style_size", SIZES)
@pytest.mark.parametrize("kind", TERMS)
def test_loss_is_its_definition(kind: type[LossTerm], style_size: tuple[int, int]) -> None:
    images = random_image(1, SIZES[0]), random_image(2, SIZES[0]), random_image(3, style_size)
    loss = float(loss_of(kind, *images))
    assert loss > 1e-6
    assert loss == pytest.approx(DEFINITIONS[kind](*images), rel=1e-9)


@pytest.mark.parametrize("kind", TERMS)
def test_gradient_is_that_of_finite_differences(kind: type[LossTerm]) -> None:
    others = random_image(2, (7, 5)), random_image(3, (6, 8))
    image = random_image(1, (7, 5)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss_of(kind, x, *others), [image])


@pytest.mark.parametrize("kind", TERMS)
def test_loss_of_the_target_itself_is_0(kind: type[LossTerm]) -> None:
    target = torch.full_like(random_image(0, (7, 5)), 0.3) if kind is TotalVariation else None
    image = random_image(1, (7, 5)) if target is None else target
    assert float(loss_of(kind, image, image, image)) == pytest.approx(0, abs=1e-28)


def test_no_other_phases_are_nearer_than_those_of_the_spectrum_loss() -> None:
    image, style = random_image(1, (7, 5)), random_image(2, (7, 5))
    loss = float(loss_of(SpectrumLoss, image, image, style))
    for seed in range(20):
        phase = torch.fft.fft2(random_image(3 + seed, (7, 5))[:, :1])
        other = torch.fft.ifft2(torch.fft.fft2(style) * phase / phase.abs())
        assert other.imag.abs().max() < 1e-12
        assert (image - other.real).square().mean() > loss


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (6, 1), (3, 3)])
@pytest.mark.parametrize("kind", TERMS)
def test_image_a_pixel_high_has_finite_losses_and_gradients(
    kind: type[LossTerm], size: tuple[int, int]
) -> None:
    """Means over nothing are 0."""
    image = random_image(1, size).requires_grad_()
    loss = loss_of(kind, image, random_image(2, size), random_image(3, size))
    (gradient,) = torch.autograd.grad(loss, image)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    if kind is LaplacianLoss or (kind is TotalVariation and size == (1, 1)):
        assert loss == 0
        assert not gradient.any()


@pytest.mark.parametrize("kind", FEATURE_TERMS)
def test_filters_that_are_never_active_have_finite_gradients(kind: type[LossTerm]) -> None:
    for value in (0.0, 0.4):  # every filter constant, or nearly so
        image = torch.full((1, 3, 7, 5), value, dtype=torch.float64).requires_grad_()
        loss = loss_of(kind, image, image.detach(), random_image(3, (6, 8)))
        (gradient,) = torch.autograd.grad(loss, image)
        assert gradient.isfinite().all()
    image = random_image(1, (7, 5)).float().requires_grad_()
    term = kind(TERMS[kind])
    layers = {layer: torch.zeros((1, 4, 7, 5)) for layer in WEIGHTS}
    if term.statistic == "mean_and_gram_matrix":
        layers = {layer: torch.zeros((4, 5)) for layer in WEIGHTS}
    term.set_targets({"style": image}, lambda *_: {term.statistic: layers})
    maps = {layer: value.clone().requires_grad_() for layer, value in layers.items()}
    losses = term.parts(image, {term.statistic: maps})
    for gradient in torch.autograd.grad(sum(losses.values()), list(maps.values())):
        assert gradient.isfinite().all()


def test_directions_have_length_1_and_are_the_same_at_each_call() -> None:
    for channels in (3, 64):
        vectors = directions(channels, torch.float64)
        assert vectors.shape == (channels, channels)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones_like(vectors[0]))
        assert torch.equal(vectors, directions(channels, torch.float64))


def test_term_of_weight_0_is_left_out_with_its_columns(
    weights: dict[str, Tensor], images: tuple[Tensor, Tensor]
) -> None:
    optional = {term.name for term in loss_terms() if term.optional}
    off = {term.weight_key: 0.0 for term in loss_terms() if term.optional}
    features = FrozenFeatures(down_to(weights, ["conv2_1"]), "avg")
    names = objective_of(features, images, style_layers=["conv1_1"], **off).names
    assert not any(name.startswith(each) for name in names for each in optional)
    settings = {key: value for term in TERMS.values() for key, value in term.items()}
    settings["style_layers"] = WEIGHTS
    losses = objective_of(features, images, **settings)(images[0].flip(3))
    assert all(losses[term.name] > 0 for term in TERMS)
    assert "moments_conv2_1_weighted" in losses
    without = objective_of(features, images, **settings | {"style_layers": []})
    assert "moments" in without.names
    assert not any("moments_" in name for name in without.names)
