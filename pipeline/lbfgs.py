"""L-BFGS with its history in one matrix, and a bound on the length of a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.lbfgs import _strong_wolfe

from pipeline.sums import total

CURVED = 1e-10
"""A pair whose sᵀy is not above this is not remembered; torch's value."""
MOST, LEAST, GROWTH = 2.0, 0.25, 1.25
"""Of the factor that ``mean`` has before it; what a loss that rose takes from it is half."""
Scaling = Literal["newest", "mean"]


class LBFGS(torch.optim.Optimizer):
    """Limited-memory BFGS (Liu & Nocedal 1989) of one tensor, one iteration a step.

    With ``scaling="newest"`` the iterates are those of ``torch.optim.LBFGS`` with ``max_iter=1``,
    to rounding; so are the names of all other options. torch's walks through the history twice, a
    pair at a time, and waits for the device at each. Here steps s, gradient differences y and the
    gradient are the rows of one matrix B. The recursion needs the products of these rows alone
    (Chen et al. 2014, "Large-scale L-BFGS using MapReduce"): one matrix product brings those with
    the newest rows, the recursion runs on a few hundred numbers, and a second matrix product makes
    the direction.

    **Differs:** a step that would move the values further than ``largest_step`` is taken in part,
    and the curvature measured along what was taken. Where the loss is hardly curved between two
    images, the inverse of that curvature is a step of a million times the picture's range, and the
    loss infinite after it. Style losses are quartic in the activations, so this happens, most
    often at the second step. What a line search tries on its way is not bound.

    **Differs**, if asked to: the inverse Hessian is built up from γ·I, and the usual γ = sᵀy / yᵀy
    of the newest pair (Nocedal & Wright 2006, eq. 7.20) is too short in most of the directions
    that the history does not know, and jumps from step to step. ``scaling="mean"`` takes the mean
    of that over the history, twice. Where that is too long a run would settle into steps that
    overshoot and come back: after each that raised the loss the factor is half of what it was, down
    to a quarter, and after each other it grows again.

    Args:
        parameter: the tensor; a leaf that requires its gradient.
        largest_step: mean distance that a step may move a value; > 0.
        lr: length of every step but the first, which is 1 / ‖g‖₁ times it, at most.
        history_size: how many pairs (s, y) are remembered.
        scaling: what γ is: ``newest``, torch's, or ``mean``.
        tolerance_grad: no step is taken where no part of the gradient is above it.
        tolerance_change: nor where gᵀd along the direction d is above its negative.
        line_search_fn: None, or ``strong_wolfe`` with at most ``max_eval`` trials a step.

    Attributes:
        still: why the latest step did not move the parameter; empty if it did.
    """

    def __init__(
        self,
        parameter: Tensor,
        largest_step: float = math.inf,
        *,
        lr: float = 1.0,
        history_size: int = 20,
        scaling: Scaling = "newest",
        tolerance_grad: float = 0.0,
        tolerance_change: float = 0.0,
        line_search_fn: str | None = None,
        max_eval: int = 25,
    ) -> None:
        self.still = ""
        options = {
            "largest_step": largest_step,
            "lr": lr,
            "history_size": history_size,
            "scaling": scaling,
            "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change,
            "line_search_fn": line_search_fn,
            "max_eval": max_eval,
        }
        super().__init__([parameter], options)
        self.parameter = parameter

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Takes one step and returns the loss before it.

        Args:
            closure: evaluates the loss and its gradient anew, and returns the loss.
        """
        closure = torch.enable_grad()(closure)
        loss = closure()
        options, state = self.param_groups[0], self.state[self.parameter]
        gradient = self._gradient()
        self.still = ""
        if options["tolerance_grad"] and gradient.abs().max() <= options["tolerance_grad"]:
            self.still = "no part of the gradient is above lbfgs.tolerance_grad"
            return loss
        if not state:
            if not gradient.any():
                self.still = "the gradient is 0"
                return loss
            state.update(_empty(gradient, options["history_size"]))
            state["basis"][-1] = gradient
            state["products"][-1, -1] = total(gradient.square())
            state["loss"] = float(loss)
            length = min(1.0, 1 / total(gradient.abs()).item()) * options["lr"]
        else:
            self._remember(gradient)
            self._adapt(float(loss))
            length = options["lr"]
        factor = state["factor"] if options["scaling"] == "mean" else None
        products = state["products"].numpy()
        coefficients = _recursion(products, state["order"], factor)
        slope = float(products[-1].astype(np.float64) @ coefficients)
        if slope > -options["tolerance_change"]:
            state["basis"][state["spare"]] = 0
            self.still = "the direction does not lead down"
            if options["tolerance_change"]:
                self.still = "no direction gains more than lbfgs.tolerance_change"
            return loss
        direction = torch.mv(state["basis"].T, torch.from_numpy(coefficients).to(gradient))
        if options["line_search_fn"]:
            length = self._searched(closure, length, direction, loss, slope)
            if length == 0:
                self.still = "the line search finds no lower loss"
        # The bound stays on the device: to read it would be to wait for it.
        bound = options["largest_step"] * direction.numel() / total(direction.abs())
        taken = torch.mul(direction, bound.clamp(max=length), out=state["basis"][state["spare"]])
        self.parameter.add_(taken.view_as(self.parameter))
        return loss

    def _gradient(self) -> Tensor:
        assert self.parameter.grad is not None, "the closure computed no gradient"
        return self.parameter.grad.flatten()

    def _remember(self, gradient: Tensor) -> None:
        """Completes the pair of the step taken last, and keeps it if it shows curvature."""
        state = self.state[self.parameter]
        basis, order, new = state["basis"], state["order"], state["spare"]
        pairs = len(basis) // 2
        torch.sub(gradient, basis[-1], out=basis[pairs + new])
        basis[-1] = gradient
        # Here a step waits for the device; the loss, read after it, is there by then.
        found = _products(basis, (pairs + new, 2 * pairs)).cpu().numpy()
        state["products"] = state["products"].cpu()  # where a checkpoint may have put it
        products = state["products"].numpy()
        products[new] = products[:, new] = 0
        for row, of_row in zip((pairs + new, 2 * pairs), found.T, strict=True):
            products[row] = products[:, row] = of_row
        if found[new, 0] > CURVED:
            order.append(new)
            used = self.param_groups[0]["history_size"]
            state["spare"] = order.pop(0) if len(order) > used else len(order)

    def _adapt(self, loss: float) -> None:
        """Makes the next steps bolder, or less so where the latest one raised the loss."""
        state = self.state[self.parameter]
        fell = loss <= state["loss"]
        state["factor"] = (
            min(MOST, state["factor"] * GROWTH) if fell else max(LEAST, state["factor"] / 2)
        )
        state["loss"] = loss

    def _searched(
        self,
        closure: Callable[[], Tensor],
        length: float,
        direction: Tensor,
        loss: Tensor,
        slope: float,
    ) -> float:
        """Returns a length that the strong Wolfe conditions accept; the parameter stays put."""
        start = self.parameter.clone()

        def evaluated(_: Any, t: float, d: Tensor) -> tuple[float, Tensor]:
            self.parameter.copy_(start + t * d.view_as(start))
            found = float(closure()), self._gradient().clone()
            self.parameter.copy_(start)
            return found

        evaluations = self.param_groups[0]["max_eval"] - 1
        _, _, t, _ = _strong_wolfe(  # type: ignore[no-untyped-call]
            evaluated,
            None,
            length,
            direction,
            float(loss),
            self.state[self.parameter]["basis"][-1],
            slope,
            max_ls=evaluations,
        )
        return float(t)


def _empty(gradient: Tensor, history_size: int) -> dict[str, Any]:
    """Returns the state before the first step.

    ``basis`` has a row for each step s, then for each difference y, then the gradient. There is
    one pair more than is remembered, the ``spare`` one: the step being taken. ``products`` is
    basis · basisᵀ, on the CPU, with 0 for those that the recursion never meets: of two steps, and
    of a step with an older difference. ``order`` lists the pairs that are remembered, oldest first.
    ``factor`` is what ``mean`` multiplies the mean by.
    """
    rows = 2 * (history_size + 1) + 1
    basis = gradient.new_zeros((rows, gradient.numel()))
    products = torch.zeros((rows, rows), dtype=gradient.dtype)
    return {"basis": basis, "products": products, "order": [], "spare": 0, "factor": MOST}


def _products(basis: Tensor, rows: tuple[int, int]) -> Tensor:
    """Returns the products of all rows with two of them, (rows, 2)."""
    first, second = rows
    if basis.is_cuda:  # which takes longer, up to three times, for both at once
        return torch.stack([torch.mv(basis, basis[row]) for row in rows], 1)
    # A slice is both rows too, where a list of them would be a copy.
    return basis @ basis[first :: second - first].T


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
