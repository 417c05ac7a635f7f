"""Colours of the content image, against the formulas of the paper written out in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import cholesky, sqrtm
from torch import Tensor

from pipeline.imaging.colour import (
    VARIANCE,
    ColourMatching,
    luminance,
    match_colours,
    match_luminance,
    to_grey,
    with_chroma,
)
from pipeline.imaging.tensors import to_picture, to_tensor

Array = NDArray[np.float64]
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
"""The colour space of the paper; I and Q with three decimals, as it is usually printed."""


def muted(seed: int, size: tuple[int, int] = (13, 9)) -> Tensor:
    """Returns a float64 image with correlated colours far from 0 and 1, which nothing clamps."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand((1, 3, *size), generator=generator, dtype=torch.float64)
    mixed = torch.stack([noise[:, 0], noise[:, :2].mean(1), noise.mean(1)], 1)
    return 0.4 + 0.2 * mixed


def colours(image: Tensor) -> Array:
    return np.asarray(image.numpy()[0].reshape(3, -1))


def grey_levels(image: Tensor) -> Array:
    return np.asarray((YIQ[0] @ colours(image)).reshape(image.shape[-2:]))


def close(values: Tensor | Array, expected: Array) -> None:
    np.testing.assert_allclose(np.asarray(values), expected, rtol=1e-9, atol=0)


def test_luminance_is_y_of_yiq_in_each_channel() -> None:
    image = muted(0)
    close(luminance(image)[0, 0], grey_levels(image))
    assert torch.equal(to_grey(image), luminance(image).repeat(1, 3, 1, 1))


def test_luminance_gets_the_mean_and_deviation_of_the_content() -> None:
    style, content = muted(1, (10, 7)), muted(2)
    own, wanted = grey_levels(style), grey_levels(content)
    deviations = [np.sqrt(each.var() + VARIANCE) for each in (wanted, own)]
    expected = deviations[0] / deviations[1] * (own - own.mean()) + wanted.mean()
    matched = match_luminance(style, content)
    for channel in matched[0]:
        close(channel, expected)
    assert matched.mean().item() == pytest.approx(wanted.mean(), rel=1e-9)
    assert matched[0, 0].numpy().std() == pytest.approx(wanted.std(), rel=2e-3)


@pytest.mark.parametrize("how", get_args(ColourMatching))
def test_colours_get_the_mean_and_covariance_of_the_content(how: ColourMatching) -> None:
    style, content = muted(1, (10, 7)), muted(2)
    own, wanted = colours(style), colours(content)
    covariances = [np.cov(each, bias=True) + VARIANCE * np.eye(3) for each in (wanted, own)]
    if how == "cholesky":
        roots = [cholesky(each, lower=True) for each in covariances]
    else:
        roots = [sqrtm(each) for each in covariances]
    mapping = roots[0] @ np.linalg.inv(roots[1])
    centred = own - own.mean(1, keepdims=True)
    matched = colours(match_colours(style, content, how))
    close(matched, mapping @ centred + wanted.mean(1, keepdims=True))
    close(matched.mean(1), wanted.mean(1))
    np.testing.assert_allclose(*(np.cov(c, bias=True) for c in (matched, wanted)), atol=VARIANCE)
    # With the added variance, which the mapping sees, the covariance is the content's exactly.
    moved = np.cov(matched, bias=True) + VARIANCE * mapping @ mapping.T
    np.testing.assert_allclose(moved, covariances[0], rtol=1e-9)


@pytest.mark.parametrize("how", get_args(ColourMatching))
def test_image_with_the_colours_of_the_content_is_unchanged(how: ColourMatching) -> None:
    content = muted(2)
    style = content.flip(3)
    close(colours(match_colours(style, content, how)), colours(style))


def test_chroma_is_that_of_the_content_and_luminance_that_of_the_image() -> None:
    image, content = muted(1), muted(2)
    result = with_chroma(image, content)
    close(grey_levels(result), grey_levels(image))
    for component in YIQ[1:]:
        # The rows of I and Q add up to 0, so the luminance has no part in them.
        np.testing.assert_allclose(
            component @ colours(result), component @ colours(content), rtol=0, atol=1e-12
        )


def test_luminance_moves_to_where_the_chroma_can_be_shown() -> None:
    generator = torch.Generator().manual_seed(0)
    content = torch.rand((1, 3, 40, 30), generator=generator)
    image = 3 * torch.rand((1, 3, 40, 30), generator=generator) - 1
    result = with_chroma(image, content)
    assert result.min() >= -1e-6
    assert result.max() <= 1 + 1e-6
    chroma = [YIQ[1:] @ colours(each.double()) for each in (result, content)]
    np.testing.assert_allclose(*chroma, atol=1e-6)
    saved = colours(to_tensor(to_picture(result)).double())
    assert np.abs(YIQ[1:] @ saved - chroma[1]).max() < 1 / 255
    inside = (luminance(result) - luminance(image)).abs() < 1e-6
    assert 0.2 < inside.double().mean() < 0.8


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "luminance": match_luminance,
    "cholesky": lambda style, content: match_colours(style, content, "cholesky"),
    "pca": lambda style, content: match_colours(style, content, "pca"),
    "chroma": lambda style, content: with_chroma(style, content),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_colours_are_the_same_with_any_number_of_threads(function: str) -> None:
    style, content = (muted(seed, (211, 307)).float() for seed in (1, 2))
    results = []
    for threads in (1, 3, 8):
        torch.set_num_threads(threads)
        results.append(FUNCTIONS[function](style, content))
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert results[0].dtype == torch.float32
    assert results[0].is_contiguous()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_grey_and_constant_pictures_have_finite_colours(function: str) -> None:
    colourful = torch.rand((1, 3, 8, 6), generator=torch.Generator().manual_seed(0))
    flat = torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1).expand(1, 3, 8, 6)
    pictures = [colourful, to_grey(colourful), flat, torch.zeros_like(flat), torch.ones_like(flat)]
    pictures.append(colourful * torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1))
    for style in pictures:
        for content in pictures:
            result = FUNCTIONS[function](style, content)
            assert result.isfinite().all()
            assert result.min() >= -1e-6
            assert result.max() <= 1 + 1e-6
