"""What L-BFGS knows of the loss's curvature, and the direction that follows from it.

Numbers by the hundred for each member, and none of the size of an image: those are rows of the
basis, which is the optimiser's to write. All of it is tensors beside the images, changed in place,
and no number is asked for: a GPU need not wait for Python, and what it does can be recorded.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CURVED = 1e-10
"""A pair whose sᵀy is not above this is not remembered; torch's value."""
MOST, LEAST, GROWTH = 2.0, 0.25, 1.25
"""Of the factor that ``mean`` has before it; what a loss that rose takes from it is half."""

Curvature = dict[str, Tensor]
"""Of N members with P places for pairs, one of them the ``spare`` one: the step being taken.

``inverse`` (N, P, P) is R⁻¹, where R holds sᵢᵀyⱼ of the pairs i not newer than j; rows and columns
of places without a pair are 0. ``differences`` (N, P, P) is YᵀY, and ``curvatures`` (N, P) is sᵀy
of each pair, 0 where there is none. ``spare`` (N,) is a place; the pairs follow it around, oldest
first. ``factor`` (N,) is what ``mean`` multiplies the mean by, ``loss`` (N,) the latest.
"""


class Direction(NamedTuple):
    """Where each member's step leads.

    Attributes:
        coefficients: of the rows of its basis, (N, rows): steps, differences, the gradient.
        slope: of its loss along their sum, (N,).
    """

    coefficients: Tensor
    slope: Tensor


def empty(members: int, history_size: int, device: torch.device) -> Curvature:
    """Returns what is known before the first step."""
    # Apple's GPUs have no float64.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    places = history_size + 1
    square = torch.zeros((members, places, places), dtype=dtype, device=device)
    return {
        "inverse": square,
        "differences": square.clone(),
        "curvatures": square[:, 0].clone(),
        "spare": torch.zeros(members, dtype=torch.int64, device=device),
        "factor": square.new_full((members,), MOST),
        "loss": square.new_full((members,), torch.inf),
    }


def remember(known: Curvature, products: Tensor) -> None:
    """Completes the pair of the step taken last, and keeps it if it shows curvature.

    Args:
        known: is changed.
        products: of the basis's rows with the newest difference y, (N, rows).
    """
    inverse, differences, curvatures = (
        known[name] for name in ("inverse", "differences", "curvatures")
    )
    count = curvatures.shape[1]
    with_steps, with_differences, _ = torch.split(products.to(inverse), [count, count, 1], 1)
    places = torch.arange(count, device=inverse.device)
    new = places == known["spare"][:, None]
    found = with_steps.gather(1, known["spare"][:, None])
    curved = found > CURVED
    # Of a triangular matrix with a column more, the inverse has a column more: R⁻¹ stays.
    column = (new.to(inverse) - _times(inverse, with_steps)) / found
    column.masked_fill_(~curved, 0)
    inverse.copy_(torch.where(new[:, None], column[:, :, None], inverse))
    rows = torch.where(new[:, :, None], with_differences[:, None], differences)
    differences.copy_(torch.where(new[:, None], with_differences[:, :, None], rows))
    curvatures.copy_(torch.where(new, found.masked_fill(~curved, 0), curvatures))
    # The next place after a pair that is kept has the oldest, which goes: so do its row and column.
    known["spare"].add_(curved[:, 0]).remainder_(count)
    oldest = places == known["spare"][:, None]
    inverse.masked_fill_(oldest[:, None] | oldest[:, :, None], 0)
    curvatures.masked_fill_(oldest, 0)


def adapt(known: Curvature, loss: Tensor) -> None:
    """Makes the next steps bolder, or less so where the latest one raised the loss.

    Args:
        known: is changed.
        loss: of each member now, (N,).
    """
    factor, loss = known["factor"], loss.to(known["loss"])
    grown, halved = (factor * GROWTH).clamp(max=MOST), (factor / 2).clamp(min=LEAST)
    factor.copy_(torch.where(loss <= known["loss"], grown, halved))
    known["loss"].copy_(loss)


def direction(known: Curvature, products: Tensor, by_mean: bool) -> Direction:
    """Returns the direction -Hg of each member, H the inverse Hessian that the pairs make of γ·I.

    Byrd, Nocedal & Schnabel 1994, "Representations of quasi-Newton matrices", theorem 2.2; torch's
    two loops come to the same, a pair at a time.

    Args:
        known: as ``remember`` and ``adapt`` have left it.
        products: of the basis's rows with the gradient g, (N, rows).
        by_mean: γ is ``factor`` times the mean over the pairs; else that of the newest pair.
    """
    inverse, curvatures = known["inverse"], known["curvatures"]
    count = curvatures.shape[1]
    products = products.to(inverse)
    with_steps, with_differences, _ = torch.split(products, [count, count, 1], 1)
    scale = _scale(known, by_mean)
    of_differences = _times(inverse, with_steps)
    inner = _times(known["differences"], of_differences) - with_differences
    of_steps = _times(inverse.mT, curvatures * of_differences + scale * inner)
    coefficients = torch.cat([-of_steps, scale * of_differences, -scale], 1)
    return Direction(coefficients, (coefficients * products).sum(1))


def _scale(known: Curvature, by_mean: bool) -> Tensor:
    """Returns γ of each member, (N, 1), from sᵀy / yᵀy of its pairs."""
    curvatures = known["curvatures"]
    remembered = curvatures > 0
    squares = known["differences"].diagonal(dim1=1, dim2=2)
    scales = (curvatures / squares).masked_fill(~remembered, 0)
    if by_mean:
        count = remembered.sum(1, keepdim=True)
        scale = known["factor"][:, None] * scales.sum(1, keepdim=True) / count
    else:
        newest = (known["spare"] - 1).remainder(curvatures.shape[1])
        scale = scales.gather(1, newest[:, None])
    return scale.masked_fill(~remembered.any(1, keepdim=True), 1)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Returns the products (N, P) of matrices (N, P, P) and vectors (N, P), summed in one way."""
    return (matrix * vector[:, None]).sum(2)
