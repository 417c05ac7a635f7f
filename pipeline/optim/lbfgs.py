"""L-BFGS with its history in one matrix, and a bound on the length of a step."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.lbfgs import _strong_wolfe

from pipeline.optim.divided_history import DividedHistory
from pipeline.optim.history import CompactHistory, GpuHistory, History
from pipeline.optim.inverse_hessian import InverseHessian
from pipeline.runtime.cuda_graphs import cuda_graph
from pipeline.runtime.process_group import ALONE, ProcessGroup
from pipeline.runtime.summation import total

Scaling = Literal["newest", "mean"]
HistoryPrecision = Literal["float32", "bf16"]
STEPS_BEFORE_CAPTURE = 2
"""The first step differs from the others by its length, and the second warms the kernels up."""
MOVED, SMALL_GRADIENT, NO_DESCENT, NO_LENGTH = range(4)
REASONS = {
    MOVED: "",
    SMALL_GRADIENT: "no part of the gradient is above lbfgs.tolerance_grad",
    NO_DESCENT: "the loss does not fall along the direction",
    NO_LENGTH: "the line search finds no lower loss",
}
"""Outcomes of a step, and why a step was not taken."""


class LBFGS(torch.optim.Optimizer):
    """Limited-memory BFGS (Liu & Nocedal 1989) of one tensor, one iteration a step.

    With ``scaling="newest"`` the iterates are those of ``torch.optim.LBFGS`` with ``max_iter=1``,
    up to rounding, if ‖g‖₁ ≥ 1 at the start; all other options have torch's names. torch loops over
    the history twice, a pair at a time, and waits for the device at each pair. Here the direction
    needs only the dot products of the rows of one matrix (``History``; Chen et al. 2014,
    "Large-scale L-BFGS using MapReduce"). One product with the matrix computes those with the
    newest rows, small matrices turn them into a coefficient for each row (``InverseHessian``), and
    a second product with the matrix is the direction. Without a line search no step waits for a
    CUDA GPU, and everything but ``History.add_gradient`` is one launch of a CUDA graph.

    **Differs:** a factor of the loss changes no iterate, if there are no tolerances. The first step
    therefore has length lr / ‖g‖₁, where torch's is shorter if ‖g‖₁ is below 1.

    **Differs:** a step that would move the values further than ``largest_step`` is shortened, and
    the curvature is measured along the shortened step. Where a style loss is hardly curved, a step
    could be a million times the picture's range. The trials of a line search are not bounded.

    **Differs** with ``scaling="mean"``: the inverse Hessian starts from γI with twice the mean of
    sᵀy / yᵀy over the history. That of the newest pair (Nocedal & Wright 2006, eq. 7.20) is too
    short in most of the directions outside the history. Each step that raises the loss halves the
    factor of 2, down to a quarter, and each other step lets it grow again.

    Args:
        parameter: the tensor: a contiguous leaf that requires its gradient, on its final device.
        largest_step: the largest mean distance by which a step may move a value; > 0.
        lr: length of every step but the first, by which the values move lr in the L1 norm.
        history_precision: of the stored pairs: ``float32`` (the parameter's), or ``bf16``.
        history_on_host: whether the pairs are stored in the host's memory.
        scaling: how γ is chosen: ``newest`` (torch's) or ``mean``.
        tolerance_grad: no step is taken if no part of the gradient is above it.
        tolerance_change: no step is taken if gᵀd along the direction d is above its negative.
        line_search_fn: None, or ``strong_wolfe`` with at most ``max_eval`` evaluations a step.
        group: the processes among which the pairs are divided.
    """

    def __init__(
        self,
        parameter: Tensor,
        largest_step: float = math.inf,
        *,
        lr: float = 1.0,
        history_size: int = 20,
        history_precision: HistoryPrecision = "float32",
        history_on_host: bool = False,
        scaling: Scaling = "newest",
        tolerance_grad: float = 0.0,
        tolerance_change: float = 0.0,
        line_search_fn: str | None = None,
        max_eval: int = 25,
        group: ProcessGroup = ALONE,
    ) -> None:
        options = {
            "largest_step": largest_step,
            "lr": lr,
            "history_size": history_size,
            "history_precision": history_precision,
            "history_on_host": history_on_host,
            "scaling": scaling,
            "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change,
            "line_search_fn": line_search_fn,
            "max_eval": max_eval,
        }
        super().__init__([parameter], options)
        self.parameter, self.group = parameter, group
        compact = history_precision == "bf16" or (history_on_host and not parameter.is_cpu)
        self._compact = compact
        alone = group.size == 1
        self.capture = cuda_graph if parameter.is_cuda and not compact and alone else None
        self._history: History | None = None
        self._loss = torch.zeros((), dtype=parameter.dtype, device=parameter.device)
        self._steps_before_capture = STEPS_BEFORE_CAPTURE
        self._captured_for: dict[str, Any] = {}
        self._replay: Callable[[], object] | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Takes one step, and returns the loss before it. The closure computes the gradient too."""
        closure = torch.enable_grad()(closure)
        loss = closure()
        first = not self.state[self.parameter]
        self.history.add_gradient(self._gradient())
        self._loss.copy_(loss)
        if self.param_groups[0]["line_search_fn"]:
            self._search(closure, loss, first)
        elif self.capture and not self._steps_before_capture:
            self._move_by_graph()
        else:
            self._steps_before_capture = max(0, self._steps_before_capture - 1)
            self._move(first)
        return loss

    @property
    def _dtype(self) -> torch.dtype:
        """The type of the stored pairs."""
        half = self.param_groups[0]["history_precision"] == "bf16"
        return torch.bfloat16 if half else self.parameter.dtype

    @property
    def _device(self) -> torch.device:
        """Where the pairs are stored."""
        on_host = self.param_groups[0]["history_on_host"]
        return torch.device("cpu") if on_host else self.parameter.device

    @property
    def history(self) -> History:
        """The vectors of the state; the state is created if there is none."""
        state, history_size = self.state[self.parameter], self.param_groups[0]["history_size"]
        if not state:
            rows, count = 2 * (history_size + 1), self.parameter.numel()
            device = self.parameter.device
            state["outcome"] = torch.zeros((), dtype=torch.int64, device=device)
            state.update(InverseHessian.without_pairs(history_size, device)._asdict())
            if self.group.size > 1:
                self._divide_history(state)
            elif self._compact:
                state["rows"] = torch.zeros((rows, count), dtype=self._dtype, device=self._device)
                state["gradient"] = self.parameter.new_zeros(count)
            else:
                state["rows"] = self.parameter.new_zeros((rows + 1, count))
        if self._history is None or self._history.rows is not state["rows"]:
            if self._compact:
                self._history = CompactHistory(state["rows"], state["slot"], state["gradient"])
            else:
                kind = GpuHistory if self.capture else History
                self._history = kind(state["rows"], state["slot"])
        return self._history

    def _divide_history(self, state: dict[str, Any]) -> DividedHistory:
        """Gives the state an empty history divided among the group, and returns it."""
        slots = self.param_groups[0]["history_size"] + 1
        on_host = self._device != self.parameter.device
        divided = DividedHistory(
            self.group, self.parameter, state["slot"], slots, self._dtype, on_host
        )
        self._history, state["rows"], state["gradient"] = divided, divided.rows, divided.gradient
        return divided

    @property
    def reason_not_moved(self) -> str:
        """Why the latest step did not move the parameter; empty if it did."""
        outcome = int(self.state[self.parameter]["outcome"])
        if outcome != SMALL_GRADIENT and not self.history.gradient.any():
            return "the gradient is 0"
        if outcome == NO_DESCENT and self.param_groups[0]["tolerance_change"]:
            return "no direction gains more than lbfgs.tolerance_change"
        return REASONS[outcome]

    def state_dict(self) -> dict[str, Any]:
        saved = super().state_dict()
        if isinstance(self._history, DividedHistory):
            rows = self._history.whole_rows()
            saved["state"] = {key: {**each, "rows": rows} for key, each in saved["state"].items()}
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # torch would convert the whole state to the parameter's dtype and device.
        super().load_state_dict({**state_dict, "state": {}})
        self._history, self._captured_for = None, {}
        for saved in state_dict["state"].values():
            state = self.state[self.parameter]
            for name, value in saved.items():
                if name == "rows" and self.group.size > 1:
                    continue  # all of them may not fit on this device
                device = self._device if name == "rows" else self.parameter.device
                state[name] = value.to(device, copy=True)
            if self.group.size > 1:
                self._divide_history(state).load(saved["rows"], saved["gradient"])

    def _move_by_graph(self) -> None:
        """Takes a step by replaying a CUDA graph, or kernel by kernel if capture fails."""
        addresses = self.history.rows.data_ptr(), self.parameter.data_ptr()
        needed = {**self.param_groups[0], "params": addresses}
        if needed != self._captured_for:
            assert self.capture is not None
            self._captured_for, self._replay = needed, None
            try:
                self._replay, _ = self.capture(self._move, 0)
            except RuntimeError as error:
                print(f"L-BFGS runs without a CUDA graph, since its capture failed: {error}")
        (self._replay or self._move)()

    def _move(self, first: bool = False) -> None:
        direction, length, _ = self._plan_step(first)
        self._take_step(direction, length)

    def _plan_step(self, first: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the direction d, the step's length, which is 0 for no step, and gᵀd."""
        options, state = self.param_groups[0], self.state[self.parameter]
        inverse_hessian = InverseHessian(*(state[name] for name in InverseHessian._fields))
        with_y, with_g = self.history.products()
        inverse_hessian.add_pair(with_y, self._loss)
        inverse_hessian.adapt_factor(self._loss)
        coefficients, slope = inverse_hessian.direction(with_g, options["scaling"] == "mean")
        outcome = state["outcome"].fill_(MOVED)
        outcome.masked_fill_(slope > -options["tolerance_change"], NO_DESCENT)
        if options["tolerance_grad"]:
            largest = self.history.gradient.abs().amax()
            outcome.masked_fill_(largest <= options["tolerance_grad"], SMALL_GRADIENT)
        length = (outcome == MOVED).to(slope) * options["lr"]
        if first:
            norm = total(self.history.gradient.abs())
            length *= 1 / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        return self.history.combine(coefficients), length, slope

    def _take_step(self, direction: Tensor, length: Tensor) -> None:
        """Moves the parameter, no further than ``largest_step``."""
        bound = self.param_groups[0]["largest_step"] * len(direction)
        length = torch.minimum(length, bound / total(direction.abs())).to(direction)
        self.history.take_step(self.parameter.view(-1), direction, length)

    def _gradient(self) -> Tensor:
        assert self.parameter.grad is not None, "the closure computed no gradient"
        return self.parameter.grad.reshape(-1)

    def _search(self, closure: Callable[[], Tensor], loss: Tensor, first: bool) -> None:
        """Takes a step whose length satisfies the strong Wolfe conditions, if there is one."""
        direction, length, slope = self._plan_step(first)
        start = self.parameter.clone()

        def evaluate(_: Any, t: float, d: Tensor) -> tuple[float, Tensor]:
            self.parameter.copy_(start + t * d.view_as(start))
            evaluation = float(closure()), self._gradient().clone()
            self.parameter.copy_(start)
            return evaluation

        if length:
            here = float(loss), self.history.gradient, float(slope)
            trials = self.param_groups[0]["max_eval"] - 1
            _, _, t, _ = _strong_wolfe(  # type: ignore[no-untyped-call]
                evaluate, None, float(length), direction, *here, max_ls=trials
            )
            length.fill_(float(t))
            self.state[self.parameter]["outcome"].fill_(MOVED if length else NO_LENGTH)
        self._take_step(direction, length)
