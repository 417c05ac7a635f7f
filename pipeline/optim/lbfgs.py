"""L-BFGS with its history in one matrix, and a bound on the length of a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.lbfgs import _strong_wolfe

from pipeline.optim import inverse_hessian as curvature
from pipeline.optim.history import Basis, UnaskedBasis
from pipeline.optim.inverse_hessian import Direction
from pipeline.runtime.cuda_graphs import cuda_graph

Scaling = Literal["newest", "mean"]
UNRECORDED = 2
"""Steps before one is recorded: the first has a length of its own, the second warms up."""
FLAT, UPWARD, UNFOUND = 1, 2, 3
REASONS = {
    0: "",
    FLAT: "no part of the gradient is above lbfgs.tolerance_grad",
    UPWARD: "the direction does not lead down",
    UNFOUND: "the line search finds no lower loss",
}
"""Why a step is not taken."""


class LBFGS(torch.optim.Optimizer):
    """Limited-memory BFGS (Liu & Nocedal 1989) of one tensor, one iteration a step.

    With ``scaling="newest"`` the iterates are those of ``torch.optim.LBFGS`` with ``max_iter=1``,
    to rounding; so are the names of all other options. torch's walks through the history twice, a
    pair at a time, and waits for the device at each. Here steps s, gradient differences y and the
    gradient are the rows of one matrix, the ``basis``. The direction needs the products of these
    rows alone (Chen et al. 2014, "Large-scale L-BFGS using MapReduce"): a product with the matrix
    brings those with the newest rows, a few small ones tell how much of each row to take
    (``curvature``), and another product with the matrix makes the direction. Without a line search
    no step waits for a CUDA GPU, where all but the gradient's receipt is one launch.

    The tensor may hold several problems, its members, which have nothing in common but the options.

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
        parameter: the tensor; a contiguous leaf that requires its gradient, where it is to stay.
        largest_step: mean distance that a step may move a value; > 0.
        lr: length of every step but the first, which is 1 / ‖g‖₁ times it, at most.
        history_size: how many pairs (s, y) are remembered.
        scaling: what γ is: ``newest``, torch's, or ``mean``.
        tolerance_grad: no step is taken where no part of the gradient is above it.
        tolerance_change: nor where gᵀd along the direction d is above its negative.
        line_search_fn: None, or ``strong_wolfe`` with at most ``max_eval`` trials a step.
        losses: returns each member's loss at the latest evaluation, (members,), as many as the
            parameter's first axis is long, and no line search; None: one, the closure's loss.
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
        losses: Callable[[], Tensor] | None = None,
    ) -> None:
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
        self.parameter, self.losses = parameter, losses
        self.members = len(parameter) if losses else 1
        # Of a GPU nothing is asked, and what asks nothing can be recorded.
        self.recorder = cuda_graph if parameter.is_cuda else None
        self._basis: Basis | None = None
        self._latest = torch.zeros(self.members, dtype=parameter.dtype, device=parameter.device)
        self._unrecorded = UNRECORDED
        self._recorded: tuple[Any, ...] = ()
        self._again: Callable[[], object] | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Takes one step and returns the loss before it.

        Args:
            closure: evaluates the loss and its gradient anew, and returns the loss.
        """
        closure = torch.enable_grad()(closure)
        loss = closure()
        first = not self.state[self.parameter]
        self.basis.receive(self._gradient())
        self._latest.copy_(self.losses() if self.losses else loss)
        if self.param_groups[0]["line_search_fn"]:
            self._search(closure, loss, first)
        elif self.recorder and not self._unrecorded:
            self._replay()
        else:
            self._unrecorded = max(0, self._unrecorded - 1)
            self._move(first)
        return loss

    @property
    def basis(self) -> Basis:
        """What the state holds of the parameter's size; the state is begun if need be."""
        state, history_size = self.state[self.parameter], self.param_groups[0]["history_size"]
        if not state:
            values = self.parameter.numel() // self.members
            rows = 2 * (history_size + 1) + 1
            state["basis"] = self.parameter.new_zeros((self.members, rows, values))
            device = self.parameter.device
            state["stays"] = torch.zeros(self.members, dtype=torch.int64, device=device)
            state.update(curvature.empty(self.members, history_size, device))
        if self._basis is None or self._basis.rows is not state["basis"]:
            kind = UnaskedBasis if self.recorder else Basis
            self._basis = kind(state["basis"], state["spare"])
        return self._basis

    @property
    def still(self) -> str:
        """Why the latest step did not move the one member there is; empty if it did."""
        state = self.state[self.parameter]
        why = int(state["stays"]) if state else 0
        if state and why != FLAT and not self.basis.gradient.any():
            return "the gradient is 0"
        if why == UPWARD and self.param_groups[0]["tolerance_change"]:
            return "no direction gains more than lbfgs.tolerance_change"
        return REASONS[why]

    def alone(self, member: int, parameter: Tensor) -> LBFGS:
        """Returns a copy of one member's L-BFGS, for a parameter of its own."""
        found = LBFGS(parameter, **self._options)
        found.state[parameter] = {
            name: values[member : member + 1].clone()
            for name, values in self.state[self.parameter].items()
        }
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._basis, self._recorded = None, ()
        # torch makes all of it the parameter's type, but places and curvature have their own.
        for kept in state_dict["state"].values():
            for name in kept.keys() - {"basis"}:
                value = kept[name].to(self.parameter.device, copy=True)
                self.state[self.parameter][name] = value

    def _replay(self) -> None:
        """Takes a step by one launch, if it can be recorded."""
        made_for = self.basis.rows.data_ptr(), self.parameter.data_ptr(), *self._options.values()
        if made_for != self._recorded:
            assert self.recorder is not None
            self._recorded, self._again = made_for, None
            try:
                self._again, _ = self.recorder(self._move, 0)
            except RuntimeError as error:
                print(f"L-BFGS not recorded as a CUDA graph, and so taken step by step: {error}")
        (self._again or self._move)()

    def _move(self, first: bool = False) -> None:
        found, length = self._look(first)
        self._go(self.basis.along(found.coefficients), length)

    def _look(self, first: bool) -> tuple[Direction, Tensor]:
        """Returns where each member's step leads, and how far, (members,): 0 if nowhere."""
        options, state = self.param_groups[0], self.state[self.parameter]
        with_difference, with_gradient = self.basis.products()
        curvature.remember(state, with_difference)
        curvature.adapt(state, self._latest)
        found = curvature.direction(state, with_gradient, options["scaling"] == "mean")
        stays = state["stays"].fill_(0)
        stays.masked_fill_(found.slope > -options["tolerance_change"], UPWARD)
        if options["tolerance_grad"]:
            largest = self.basis.gradient.abs().amax(1)
            stays.masked_fill_(largest <= options["tolerance_grad"], FLAT)
        length = (stays == 0).to(found.slope) * options["lr"]
        if first:
            length *= (1 / self.basis.norms(self.basis.gradient)).clamp(max=1)
        return found, length

    def _go(self, direction: Tensor, length: Tensor) -> None:
        """Moves the parameter, each member no further than it may, and remembers the step."""
        bound = self.param_groups[0]["largest_step"] * direction.shape[1]
        length = torch.minimum(length, bound / self.basis.norms(direction)).to(direction)
        self.basis.move(self.parameter.view(self.members, -1), direction, length)

    @property
    def _options(self) -> dict[str, Any]:
        return {name: value for name, value in self.param_groups[0].items() if name != "params"}

    def _gradient(self) -> Tensor:
        assert self.parameter.grad is not None, "the closure computed no gradient"
        return self.parameter.grad.reshape(self.members, -1)

    def _search(self, closure: Callable[[], Tensor], loss: Tensor, first: bool) -> None:
        """Takes a step of a length that the strong Wolfe conditions accept."""
        found, length = self._look(first)
        direction = self.basis.along(found.coefficients)
        if length:
            length.fill_(self._searched(closure, length, direction[0], loss, found.slope))
            self.state[self.parameter]["stays"].fill_(0 if length else UNFOUND)
        self._go(direction, length)

    def _searched(
        self,
        closure: Callable[[], Tensor],
        length: Tensor,
        direction: Tensor,
        loss: Tensor,
        slope: Tensor,
    ) -> float:
        """Returns such a length, 0 if none is found; the parameter stays put."""
        start = self.parameter.clone()

        def evaluated(_: Any, t: float, d: Tensor) -> tuple[float, Tensor]:
            self.parameter.copy_(start + t * d.view_as(start))
            found = float(closure()), self._gradient()[0].clone()
            self.parameter.copy_(start)
            return found

        here = float(loss), self.basis.gradient[0], float(slope)
        trials = self.param_groups[0]["max_eval"] - 1
        _, _, t, _ = _strong_wolfe(  # type: ignore[no-untyped-call]
            evaluated, None, float(length), direction, *here, max_ls=trials
        )
        return float(t)
