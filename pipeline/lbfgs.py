"""torch's L-BFGS with a bound on the length of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class BoundedLBFGS(torch.optim.LBFGS):
    """L-BFGS (Liu & Nocedal 1989) of one tensor, whose steps move its values no further than asked.

    **Differs** from torch's only in a step that is longer: it is taken in part, and the curvature
    measured along what was taken. Where the loss is hardly curved between two images, the inverse
    of that curvature is a step of a million times the picture's range, and the loss infinite after
    it. Style losses are quartic in the activations, so this happens, most often at the second step.
    What a line search tries on its way is not bound.

    Args:
        parameter: the tensor; a leaf that requires its gradient.
        largest_step: mean distance that a step may move a value; > 0.
        options: of ``torch.optim.LBFGS``, other than ``max_iter``, which is 1.
    """

    def __init__(self, parameter: Tensor, largest_step: float, **options: Any) -> None:
        super().__init__([parameter], max_iter=1, **options)
        self.parameter, self.largest_step = parameter, largest_step

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Takes one step and returns the loss before it."""
        before = self.parameter.clone()
        loss: Tensor = super().step(closure)  # type: ignore[no-untyped-call]
        moved = self.parameter - before
        # On a GPU this comparison waits for it, once a step.
        length = moved.abs().mean().item()
        if length > self.largest_step:
            part = self.largest_step / length
            self.parameter.copy_(before + part * moved)
            self.state[self.parameter]["t"] *= part
        return loss
