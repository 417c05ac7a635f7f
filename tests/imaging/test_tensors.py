"""Conversion between pictures and tensors, sizes, resizing and white noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import few_or_many_threads
from PIL import Image
from torch import Tensor

from pipeline.imaging.tensors import (
    STRIP,
    resize,
    scaled_size,
    to_picture,
    to_pixels,
    to_tensor,
    white_noise,
)


def test_picture_is_unchanged_by_the_conversion_to_a_tensor_and_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = to_tensor(Image.fromarray(pixels))
    assert image.shape == (1, 3, 5, 7)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert np.array_equal(np.asarray(to_picture(image)), pixels)


def test_values_outside_the_range_are_clamped_in_a_picture() -> None:
    image = torch.tensor([-0.5, 0.5, 1.5]).view(1, 3, 1, 1)
    assert to_picture(image).getpixel((0, 0)) == (0, 128, 255)


@pytest.mark.parametrize(
    ("edge", "pixels", "expected"),
    [
        ("long", 512, (384, 512)),
        ("short", 512, (512, 682)),
        ("long", None, (768, 1024)),
        ("long", 2048, (1536, 2048)),
    ],
)
def test_scaled_size_keeps_proportions(
    edge: str, pixels: int | None, expected: tuple[int, int]
) -> None:
    assert scaled_size((768, 1024), edge, pixels) == expected  # type: ignore[arg-type]


def test_antialiasing_averages_pixels_that_plain_interpolation_skips() -> None:
    stripes = (torch.arange(64) % 2).float().view(1, 1, 1, 64).expand(1, 3, 8, 64).contiguous()
    smooth = resize(stripes, (8, 16), "bilinear", antialias=True)
    assert smooth.std() < 0.05
    assert smooth.is_contiguous()
    single = torch.zeros(1, 3, 8, 64)
    single[..., 0] = 1
    assert resize(single, (8, 16), "bilinear", antialias=False).max() == 0


def test_resizing_stays_in_range_and_does_nothing_at_the_same_size(
    images: tuple[Tensor, Tensor],
) -> None:
    assert resize(images[0], (24, 40), "bicubic", antialias=True) is images[0]
    step = (torch.arange(40) > 20).float().view(1, 1, 1, 40).expand(1, 3, 24, 40).contiguous()
    larger = resize(step, (48, 80), "bicubic", antialias=True)
    assert larger.min() >= 0
    assert larger.max() <= 1


def axis_of_pillow_2_6(row: list[float], length: int) -> list[float]:
    """Returns a row of values at another length, by the formula written out."""
    values = []
    for x in range(length):
        place = x * (len(row) / length) - 0.5
        left = math.floor(place)
        a, b = (row[min(max(each, 0), len(row) - 1)] for each in (left, left + 1))
        values.append(a + (b - a) * (place - left))
    return values


@pytest.mark.parametrize("size", [(5, 8), (11, 23), (17, 40), (40, 17), (1, 3), (31, 29)])
def test_pillow_2_6_interpolates_two_neighbours_and_truncates(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (17, 29, 3), dtype=np.uint8)
    resized = resize(to_tensor(Image.fromarray(pixels)), size, "pillow-2.6", antialias=False)
    assert resized.dtype == torch.float32
    assert resized.is_contiguous()
    for channel in range(3):
        rows = [axis_of_pillow_2_6(row, size[1]) for row in pixels[..., channel].tolist()]
        columns = [axis_of_pillow_2_6(list(each), size[0]) for each in zip(*rows, strict=True)]
        expected = np.floor(np.array(columns).T)
        assert np.array_equal(np.asarray(to_picture(resized))[..., channel], expected)


def test_noise_depends_on_its_seed_alone_and_has_its_level() -> None:
    torch.manual_seed(1)
    first = white_noise((64, 48), seed=5, level=0.1)
    torch.manual_seed(2)
    assert torch.equal(first, white_noise((64, 48), seed=5, level=0.1))
    assert not torch.equal(first, white_noise((64, 48), seed=6, level=0.1))
    assert first.min() >= 0.45
    assert first.max() <= 0.55
    assert first.std().item() == pytest.approx(0.1 / 12**0.5, rel=0.05)


@pytest.mark.parametrize("bits", [8, 16])
def test_image_that_is_not_a_number_is_a_picture_without_a_warning(bits: int) -> None:
    image = torch.full((1, 3, STRIP + 2, 2), torch.nan)
    assert to_pixels(image, bits).shape == (STRIP + 2, 2, 3)


def test_pixels_of_all_strips_are_those_of_the_image() -> None:
    image = torch.rand((1, 3, 2 * STRIP + 5, 3), generator=torch.Generator().manual_seed(0))
    expected = (image[0].permute(1, 2, 0) * 255).round().to(torch.uint8)
    assert torch.equal(torch.from_numpy(to_pixels(image, 8)), expected)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("resampling", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(192, 256), (40, 50)])
def test_resized_image_is_the_same_for_any_number_of_threads(
    size: tuple[int, int], resampling: Any, antialias: bool
) -> None:
    image = torch.rand((1, 3, 96, 128), generator=torch.Generator().manual_seed(0))
    results = []
    for threads in few_or_many_threads():
        torch.set_num_threads(threads)
        results.append(resize(image, size, resampling, antialias))
    assert all(torch.equal(result, results[0]) for result in results)
