"""What L-BFGS knows of the loss's curvature, and the direction that follows from it.

Numbers by the hundred, and none of the size of an image: those are rows of the basis, which is the
optimiser's to write.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CURVED = 1e-10
"""A pair whose sᵀy is not above this is not remembered; torch's value."""
MOST, LEAST, GROWTH = 2.0, 0.25, 1.25
"""Of the factor that ``mean`` has before it; what a loss that rose takes from it is half."""


class Direction(NamedTuple):
    """Where a step leads.

    Attributes:
        coefficients: of the rows of the basis, (rows,).
        length: how much of their sum to go, at most.
        slope: of the loss along it.
    """

    coefficients: NDArray[np.float64]
    length: float
    slope: float


def empty(gradient: Tensor, history_size: int) -> dict[str, Any]:
    """Returns the state before the first step.

    ``basis`` has a row for each step s, then for each difference y, then the gradient. There is
    one pair more than is remembered, the ``spare`` one: the step being taken. ``products`` is
    basis · basisᵀ, on the CPU, with 0 for those that the recursion never meets: of two steps, and
    of a step with an older difference. ``order`` lists the pairs that are remembered, oldest first.
    ``factor`` is what ``mean`` multiplies the mean by, ``loss`` the latest, if there is one.
    """
    rows = 2 * (history_size + 1) + 1
    basis = gradient.new_zeros((rows, gradient.numel()))
    products = torch.zeros((rows, rows), dtype=gradient.dtype)
    return {
        "basis": basis,
        "products": products,
        "order": [],
        "spare": 0,
        "factor": MOST,
        "loss": None,
    }


def remember(
    state: dict[str, Any], newest: tuple[int, int], found: NDArray[Any], history_size: int
) -> None:
    """Completes the pair of the step taken last, and keeps it if it shows curvature.

    Args:
        state: from ``empty``.
        newest: rows of the basis: the difference and the gradient.
        found: the products of all rows with these two, (rows, 2).
        history_size: how many pairs to keep.
    """
    order, new = state["order"], state["spare"]
    state["products"] = state["products"].cpu()  # where a checkpoint may have put it
    products = state["products"].numpy()
    products[new] = products[:, new] = 0
    for row, of_row in zip(newest, found.T, strict=True):
        products[row] = products[:, row] = of_row
    if found[new, 0] > CURVED:
        order.append(new)
        state["spare"] = order.pop(0) if len(order) > history_size else len(order)


def adapt(state: dict[str, Any], loss: float) -> None:
    """Makes the next steps bolder, or less so where the latest one raised the loss."""
    if state["loss"] is not None:
        fell = loss <= state["loss"]
        state["factor"] = (
            min(MOST, state["factor"] * GROWTH) if fell else max(LEAST, state["factor"] / 2)
        )
    state["loss"] = loss


def direction(state: dict[str, Any], by_mean: bool) -> tuple[NDArray[np.float64], float]:
    """Returns the direction in terms of the basis, and the loss's slope along it."""
    products = state["products"].numpy()
    coefficients = _recursion(products, state["order"], state["factor"] if by_mean else None)
    return coefficients, float(products[-1].astype(np.float64) @ coefficients)


def _recursion(
    products: NDArray[Any], order: list[int], factor: float | None
) -> NDArray[np.float64]:
    """Returns the direction in terms of the basis: the two-loop recursion on its coefficients.

    Args:
        products: of the rows of the basis with each other.
        order: the pairs to take, oldest first.
        factor: of the mean that γ is; None: γ is torch's.
    """
    products = products.astype(np.float64)
    pairs = len(products) // 2
    coefficients = np.zeros(len(products))
    coefficients[-1] = -1
    factors = {}
    for pair in reversed(order):
        s = products[pair]
        factors[pair] = s @ coefficients / s[pairs + pair]
        coefficients[pairs + pair] -= factors[pair]
    if order:
        scales = [products[pairs + p, p] / products[pairs + p, pairs + p] for p in order]
        coefficients *= scales[-1] if factor is None else factor * np.mean(scales)
    for pair in order:
        s, y = products[pair], products[pairs + pair]
        coefficients[pair] += factors[pair] - y @ coefficients / s[pairs + pair]
    return coefficients
