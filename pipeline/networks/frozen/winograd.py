"""3×3 convolutions of stride 1 on a CPU, by Winograd's algorithm: a quarter of the multiplications.

F(4×4, 3×3) of Lavin & Gray 2016, "Fast algorithms for convolutional neural networks". A convolution
is a product of polynomials, whose coefficients follow by interpolation from its values at as many
points. The 6×6 input values of a 4×4 tile of the output are transformed into values at 6×6 points,
multiplied by the transformed kernel and summed over the channels, a matrix product for each point.
Another transform interpolates the tile: 36 multiplications instead of 144.

**Differs:** the points are 0, ±3/2, ±2/3 and ∞ instead of 0, ±1, ±2 and ∞. The numbers are smaller,
and the rounding errors in float32 less than half as large. Also, the inverse of a point is a point
again, so a flipped kernel has the same values in another order: the transformed kernels serve the
convolution and its derivative.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

A = 1.5
"""The points are 0, A, −A, 1/A, −1/A and ∞, in this order."""
TILE, POINTS = 4, 6
IN_ORDER, INVERSES = (0, 1, 2, 3, 4, 5), (5, 3, 4, 1, 2, 0)
"""The indices of the points, and those of their inverses."""
_NORM = 2 * (A**2 - A**-2)
"""Divisor of the interpolation, except at 0 and ∞; the kernels are divided by it beforehand."""
STRIP_SIZE = 2**16
"""Roughly how many input values are transformed at a time, so that they fit into the cache."""


def transform_kernels(kernels: Tensor) -> Tensor:
    """Returns the values of (out, in, 3, 3) kernels at the 6×6 points: (36, in, out)."""
    rows = [[_NORM, 0, 0], [1, A, A**2], [1, -A, A**2], [A**2, A, 1], [A**2, -A, 1], [0, 0, _NORM]]
    powers = torch.tensor(rows, dtype=kernels.dtype) / _NORM
    columns = torch.einsum("pa,oiab->piob", powers, kernels)
    return torch.einsum("piob,qb->pqio", columns, powers).flatten(end_dim=1).contiguous()


def convolve(
    maps: Tensor, kernels: Tensor, bias: Tensor | None = None, transposed: bool = False
) -> Tensor:
    """Returns ``functional.conv2d`` with a padding of 1, up to rounding.

    The maps are (B, C, H', W') in channels-last memory, float32 or float64; the kernels are from
    ``transform_kernels``. ``transposed`` is the derivative, from ``out`` channels to ``in``.
    """
    points = INVERSES if transposed else IN_ORDER
    kernels = kernels.transpose(1, 2) if transposed else kernels
    count, _, height, width = maps.shape
    result = maps.new_empty((count, height, width, kernels.shape[2]))
    for source, out in zip(maps.permute(0, 2, 3, 1), result, strict=True):
        _convolve_image(source, kernels, bias, points, out)
    return result.permute(0, 3, 1, 2)


def _convolve_image(
    maps: Tensor, kernels: Tensor, bias: Tensor | None, points: Sequence[int], result: Tensor
) -> None:
    """Writes the (H', W', out) result for the (H', W', in) maps of one image, strip by strip."""
    height, width, channels_in = maps.shape
    channels_out = kernels.shape[2]
    # Numbers of tiles. A strip consists of whole rows of tiles.
    down, across = -(-height // TILE), -(-width // TILE)
    rows = -(-down // -(-down * across * channels_in // STRIP_SIZE))
    tall, wide = TILE * rows, TILE * across
    window = maps.new_zeros((tall + 2, wide + 2, channels_in))
    columns_transformed = maps.new_empty((POINTS, rows, wide + 2, channels_in))
    transformed = maps.new_empty((POINTS, POINTS, rows, across, channels_in))
    products = maps.new_empty((POINTS, POINTS, rows, across, channels_out))
    columns_interpolated = maps.new_empty((TILE, POINTS, rows, across, channels_out))
    strip = maps.new_empty((rows, TILE, across, TILE, channels_out))
    for begin in range(0, height, tall):
        above, end, below = max(begin - 1, 0), min(begin + tall, height), begin + tall + 1
        top, bottom = above - begin + 1, min(below, height) - begin + 1
        window[top:bottom, 1 : width + 1] = maps[above:below]
        window[bottom:] = 0
        _transform_input(
            [window[i : i + tall - TILE + 1 : TILE] for i in range(POINTS)],
            [columns_transformed[point] for point in points],
        )
        _transform_input(
            [columns_transformed[:, :, i : i + wide - TILE + 1 : TILE] for i in range(POINTS)],
            [transformed[:, point] for point in points],
        )
        torch.bmm(
            transformed.view(36, -1, channels_in), kernels, out=products.view(36, -1, channels_out)
        )
        _interpolate([products[point] for point in points], list(columns_interpolated))
        _interpolate(
            [columns_interpolated[:, point] for point in points],
            [strip[:, :, :, i].transpose(0, 1) for i in range(TILE)],
        )
        part = strip.view(tall, wide, channels_out)[: end - begin, :width]
        if bias is None:
            result[begin:end] = part
        else:
            torch.add(part, bias, out=result[begin:end])


def _transform_input(inputs: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Writes the ``values`` at the six points of the polynomials with coefficients ``inputs``."""
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


def _interpolate(values: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Writes the four outputs that the ``values`` at the six points determine."""
    at_0, at_a, at_minus_a, at_inverse, at_minus_inverse, at_infinity = values
    sums, inverse = at_a + at_minus_a, at_inverse + at_minus_inverse
    torch.add(at_0, sums, out=outputs[0]).add_(inverse)
    torch.mul(sums, A**2, out=outputs[2]).add_(inverse, alpha=A**-2)
    differences = torch.sub(at_a, at_minus_a, out=sums)
    torch.sub(at_inverse, at_minus_inverse, out=inverse)
    torch.mul(differences, A, out=outputs[1]).add_(inverse, alpha=1 / A)
    torch.add(at_infinity, differences, alpha=A**3, out=outputs[3]).add_(inverse, alpha=A**-3)
