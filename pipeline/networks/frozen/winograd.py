"""3×3 convolutions of stride 1 in a quarter of the multiplications, on a CPU.

Winograd's F(4×4, 3×3) (Lavin & Gray 2016, "Fast algorithms for convolutional neural networks"): a
convolution is a product of polynomials, and a product of polynomials can be had by multiplying
their values at as many points as it has coefficients. A tile of 4×4 of the output comes from 6×6
of the input: their values at 6×6 points are multiplied by the kernel's, summed over the channels
(a matrix product for each point), and what the tile must be is found by interpolation: 36
multiplications where 144 would have been made.

**Differs:** the points are 0, ±3/2, ±2/3 and ∞, not 0, ±1, ±2 and ∞. The values are smaller, and
the rounding errors in float32 less than half as large. And the inverse of a point is a point
again, so that a kernel turned round has the same values at other points: one set of them serves
the convolution and its derivative.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

A = 1.5
"""The points are 0, A, −A, 1/A, −1/A and ∞, in this order."""
TILE, POINTS = 4, 6
AS_THEY_ARE, INVERSES = (0, 1, 2, 3, 4, 5), (5, 3, 4, 1, 2, 0)
"""The points, and the inverse of each."""
_N = 2 * (A**2 - A**-2)
"""What interpolation divides the values at all but 0 and ∞ by; here it is the kernels that are."""
VALUES = 2**16
"""How many values of the input are gone through at a time, about: what a cache holds."""


def at_points(kernels: Tensor) -> Tensor:
    """Returns the values of kernels at the 6×6 points.

    Args:
        kernels: (out, in, 3, 3).

    Returns:
        (36, in, out), four times as large.
    """
    rows = [[_N, 0, 0], [1, A, A**2], [1, -A, A**2], [A**2, A, 1], [A**2, -A, 1], [0, 0, _N]]
    powers = torch.tensor(rows, dtype=kernels.dtype) / _N
    down = torch.einsum("pa,oiab->piob", powers, kernels)
    return torch.einsum("piob,qb->pqio", down, powers).flatten(end_dim=1).contiguous()


def convolved(
    maps: Tensor, kernels: Tensor, bias: Tensor | None = None, turned: bool = False
) -> Tensor:
    """Returns what ``functional.conv2d`` with a padding of 1 does, to rounding.

    Args:
        maps: (B, C, H', W') in channels-last memory, float32 or float64.
        kernels: (36, in, out), from ``at_points``.
        bias: (out,), or None.
        turned: with the kernels turned round, from ``out`` channels to ``in``: the derivative.
    """
    points = INVERSES if turned else AS_THEY_ARE
    kernels = kernels.transpose(1, 2) if turned else kernels
    count, _, height, width = maps.shape
    found = maps.new_empty((count, height, width, kernels.shape[2]))
    for source, into in zip(maps.permute(0, 2, 3, 1), found, strict=True):
        _convolve(source, kernels, bias, points, into)
    return found.permute(0, 3, 1, 2)


def _convolve(
    maps: Tensor, kernels: Tensor, bias: Tensor | None, points: Sequence[int], found: Tensor
) -> None:
    """Writes the (H', W', out) maps of one image, from those of (H', W', in)."""
    height, width, before = maps.shape
    after = kernels.shape[2]
    # Tiles down and across, and those of a strip, which has all that lie beside each other.
    down, across = -(-height // TILE), -(-width // TILE)
    rows = -(-down // -(-down * across * before // VALUES))
    tall, wide = TILE * rows, TILE * across
    window = maps.new_zeros((tall + 2, wide + 2, before))
    half_valued = maps.new_empty((POINTS, rows, wide + 2, before))
    valued = maps.new_empty((POINTS, POINTS, rows, across, before))
    products = maps.new_empty((POINTS, POINTS, rows, across, after))
    half_found = maps.new_empty((TILE, POINTS, rows, across, after))
    strip = maps.new_empty((rows, TILE, across, TILE, after))
    for begin in range(0, height, tall):
        above, end, below = max(begin - 1, 0), min(begin + tall, height), begin + tall + 1
        top, bottom = above - begin + 1, min(below, height) - begin + 1
        window[top:bottom, 1 : width + 1] = maps[above:below]
        window[bottom:] = 0
        _values(
            [window[i : i + tall - TILE + 1 : TILE] for i in range(POINTS)],
            [half_valued[point] for point in points],
        )
        _values(
            [half_valued[:, :, i : i + wide - TILE + 1 : TILE] for i in range(POINTS)],
            [valued[:, point] for point in points],
        )
        torch.bmm(valued.view(36, -1, before), kernels, out=products.view(36, -1, after))
        _coefficients([products[point] for point in points], list(half_found))
        _coefficients(
            [half_found[:, point] for point in points],
            [strip[:, :, :, i].transpose(0, 1) for i in range(TILE)],
        )
        part = strip.view(tall, wide, after)[: end - begin, :width]
        if bias is None:
            found[begin:end] = part
        else:
            torch.add(part, bias, out=found[begin:end])


def _values(inputs: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Writes the values at the points of what six inputs are the coefficients of."""
    x0, x1, x2, x3, x4, x5 = inputs
    even, odd = (x4 / A**2).sub_(x2, alpha=A**-4), (x3 / A).sub_(x1, alpha=A**-3)
    torch.add(even, odd, out=values[1])
    torch.sub(even, odd, out=values[2])
    torch.mul(x2, A**2, out=even).sub_(x4)
    torch.mul(x1, A, out=odd).sub_(x3, alpha=1 / A)
    torch.add(even, odd, out=values[3])
    torch.sub(even, odd, out=values[4])
    torch.add(x0, x4, out=values[0]).sub_(x2, alpha=A**2 + A**-2)
    torch.add(x1, x5, out=values[5]).sub_(x3, alpha=A**2 + A**-2)


def _coefficients(values: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Writes the four outputs that have these values at the points."""
    at_0, at_a, at_minus_a, at_inverse, at_minus_inverse, at_infinity = values
    ours, inverse = at_a + at_minus_a, at_inverse + at_minus_inverse
    torch.add(at_0, ours, out=outputs[0]).add_(inverse)
    torch.mul(ours, A**2, out=outputs[2]).add_(inverse, alpha=A**-2)
    torch.sub(at_a, at_minus_a, out=ours)
    torch.sub(at_inverse, at_minus_inverse, out=inverse)
    torch.mul(ours, A, out=outputs[1]).add_(inverse, alpha=1 / A)
    torch.add(at_infinity, ours, alpha=A**3, out=outputs[3]).add_(inverse, alpha=A**-3)
