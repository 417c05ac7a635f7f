"""The forms of the total variation, against sums written out in loops, and their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from torch import Tensor

from pipeline.losses.pixel_terms.total_variation import TotalVariation, VariationForm
from pipeline.losses.term import WHOLE

H, W = 4, 6
Pairs = Iterator[tuple[float, float]]


@pytest.fixture
def image() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand((1, 3, H, W), generator=generator, dtype=torch.float64)


def variation(form: str, image: Tensor) -> Tensor:
    return TotalVariation({"variation_form": form}).parts(image, {})[WHOLE]


def pairs(image: Tensor, down: int, across: int, rows: range, columns: range) -> Pairs:
    """Yields values of a channel and those that are so far from them, clamped to the image."""
    for channel in image[0].tolist():
        for y in rows:
            for x in columns:
                (y0, y1), (x0, x1) = (y, y + down), (x, x + across)
                a = channel[min(max(y0, 0), H - 1)][min(max(x0, 0), W - 1)]
                yield a, channel[min(max(y1, 0), H - 1)][min(max(x1, 0), W - 1)]


def mean_square(each: Pairs) -> float:
    squares = [(a - b) ** 2 for a, b in each]
    return sum(squares) / len(squares)


def test_half_sum_leaves_out_the_last_row_and_column(image: Tensor) -> None:
    inner = range(H - 1), range(W - 1)
    squares = [(a - b) ** 2 for each in ((1, 0), (0, 1)) for a, b in pairs(image, *each, *inner)]
    assert variation("half_sum", image).item() == pytest.approx(256**2 / 2 * sum(squares))


def test_absolute_is_a_sum_on_the_scale_of_8_bits(image: Tensor) -> None:
    down = pairs(image, 1, 0, range(H - 1), range(W))
    across = pairs(image, 0, 1, range(H), range(W - 1))
    expected = sum(abs(255 * a - 255 * b) for each in (down, across) for a, b in each)
    assert variation("absolute", image).item() == pytest.approx(expected)


def test_stencil_weighs_eight_neighbours(image: Tensor) -> None:
    straight = [pairs(image, *each, range(H), range(W)) for each in ((0, 1), (1, 0))]
    around = range(-1, H), range(-1, W)
    falling = pairs(image, 1, 1, *around)
    rising = pairs(image.flip(3), 1, 1, *around)
    expected = 2 / 3 * sum(map(mean_square, straight))
    expected += (mean_square(falling) + mean_square(rising)) / 6
    assert variation("stencil", image).item() == pytest.approx(expected)


@pytest.mark.parametrize("form", get_args(VariationForm))
def test_gradient_is_autograds_and_a_level_has_no_loss(form: str, image: Tensor) -> None:
    assert torch.autograd.gradcheck(lambda x: variation(form, x), image.requires_grad_())
    for size in ((H, W), (1, W), (H, 1), (1, 1)):
        assert variation(form, torch.full((1, 3, *size), 0.7)) == 0
