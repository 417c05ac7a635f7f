"""L-BFGS with its history in one matrix, and a bound on the length of a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.lbfgs import _strong_wolfe

from pipeline import curvature
from pipeline.curvature import Direction
from pipeline.sums import total

Scaling = Literal["newest", "mean"]


class LBFGS(torch.optim.Optimizer):
    """Limited-memory BFGS (Liu & Nocedal 1989) of one tensor, one iteration a step.

    With ``scaling="newest"`` the iterates are those of ``torch.optim.LBFGS`` with ``max_iter=1``,
    to rounding; so are the names of all other options. torch's walks through the history twice, a
    pair at a time, and waits for the device at each. Here steps s, gradient differences y and the
    gradient are the rows of one matrix B. The recursion needs the products of these rows alone
    (Chen et al. 2014, "Large-scale L-BFGS using MapReduce"): one matrix product brings those with
    the newest rows, the recursion runs on a few hundred numbers, and a second matrix product makes
    the direction. A step is ``receive``, ``products``, ``look``, ``along`` and ``move``: those of
    several images wait for their device together (``pipeline.batch``).

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
        if not self.receive():
            return loss
        # Here a step waits for the device; the loss, read after it, is there by then.
        found = self.look(self.products().cpu().numpy(), loss)
        if found is None:
            return loss
        coefficients = torch.from_numpy(found.coefficients).to(self._basis)
        direction, length = self.along(coefficients), found.length
        if self.param_groups[0]["line_search_fn"]:
            length = self._searched(closure, length, direction, loss, found.slope)
            if length == 0:
                self.still = "the line search finds no lower loss"
        self.move(direction, length)
        return loss

    @property
    def _basis(self) -> Tensor:
        found: Tensor = self.state[self.parameter]["basis"]
        return found

    @property
    def _newest(self) -> tuple[int, int]:
        """The rows of the basis that ``receive`` wrote: of the difference and of the gradient."""
        pairs = len(self._basis) // 2
        return pairs + self.state[self.parameter]["spare"], 2 * pairs

    def receive(self) -> bool:
        """Takes the gradient into the basis; returns whether it says where to go on."""
        options, state = self.param_groups[0], self.state[self.parameter]
        gradient = self._gradient()
        self.still = ""
        if options["tolerance_grad"] and gradient.abs().max() <= options["tolerance_grad"]:
            self.still = "no part of the gradient is above lbfgs.tolerance_grad"
            return False
        if state:
            difference, latest = self._newest
            torch.sub(gradient, self._basis[latest], out=self._basis[difference])
        elif not gradient.any():
            self.still = "the gradient is 0"
            return False
        else:
            state.update(curvature.empty(gradient, options["history_size"]))
        self._basis[-1] = gradient
        return True

    def products(self) -> Tensor:
        """Returns the products of all rows of the basis with the two newest, (rows, 2)."""
        basis, (first, second) = self._basis, self._newest
        if basis.is_cuda:  # which takes longer, up to three times, for both at once
            return torch.stack([torch.mv(basis, basis[row]) for row in (first, second)], 1)
        # A slice is both rows too, where a list of them would be a copy.
        return basis @ basis[first :: second - first].T

    def look(self, found: NDArray[Any], loss: Tensor) -> Direction | None:
        """Returns where the next step leads, None if nowhere.

        Args:
            found: ``products``.
            loss: at the parameter's present values.
        """
        options, state = self.param_groups[0], self.state[self.parameter]
        length = options["lr"]
        if state["loss"] is None:
            length *= min(1.0, 1 / total(self._basis[-1].abs()).item())
        curvature.remember(state, self._newest, found, options["history_size"])
        curvature.adapt(state, float(loss))
        coefficients, slope = curvature.direction(state, options["scaling"] == "mean")
        if slope > -options["tolerance_change"]:
            self._basis[state["spare"]] = 0
            self.still = "the direction does not lead down"
            if options["tolerance_change"]:
                self.still = "no direction gains more than lbfgs.tolerance_change"
            return None
        return Direction(coefficients, length, slope)

    def along(self, coefficients: Tensor) -> Tensor:
        """Returns the sum of the basis's rows, each so many times: a direction, flat."""
        return torch.mv(self._basis.T, coefficients)

    def move(self, direction: Tensor, length: float) -> None:
        """Moves the parameter, and remembers the step."""
        # The bound stays on the device: to read it would be to wait for it.
        bound = self.param_groups[0]["largest_step"] * direction.numel() / total(direction.abs())
        spare = self._basis[self.state[self.parameter]["spare"]]
        taken = torch.mul(direction, bound.clamp(max=length), out=spare)
        self.parameter.add_(taken.view_as(self.parameter))

    def _gradient(self) -> Tensor:
        assert self.parameter.grad is not None, "the closure computed no gradient"
        return self.parameter.grad.flatten()

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
            self._basis[-1],
            slope,
            max_ls=evaluations,
        )
        return float(t)
