"""The history of L-BFGS: steps, gradient differences and the gradient as rows of one matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.runtime.summation import total

BLOCKS = 8
"""Parts of the values among which the threads of a CPU divide a sum of rows."""


class History:
    """The vectors of L-BFGS, each as long as the parameter has values (n).

    ==================================  ==============================  =======================
    rows                                symbol                          meaning
    ==================================  ==============================  =======================
    ``rows[i]``, i < slots              sᵢ = xᵢ₊₁ − xᵢ                  the step of slot i
    ``rows[slots + i]``                 yᵢ = gᵢ₊₁ − gᵢ                  the gradient difference
    ``rows[-1]``                        g                               the latest gradient
    ==================================  ==============================  =======================

    Args:
        rows: (2 · slots + 1, n); changed in place.
        slot: (1,) int64, the slot of the pair whose step is taken next; changed by
            ``InverseHessian.add_pair``.
    """

    def __init__(self, rows: Tensor, slot: Tensor) -> None:
        self.rows, self.slot = rows, slot
        self.slots = len(rows) // 2

    @property
    def gradient(self) -> Tensor:
        """The latest gradient g, (n,)."""
        return self.rows[-1]

    def add_gradient(self, gradient: Tensor) -> None:
        """Stores the new gradient (n,), and y, its difference from the one before."""
        torch.sub(gradient, self.rows[-1], out=self.rows[self.slots + int(self.slot)])
        self.rows[-1].copy_(gradient)

    def products(self) -> tuple[Tensor, Tensor]:
        """Returns the dot products of all rows with the newest y and with g, each (rows,)."""
        slot = int(self.slot)
        # The slice holds exactly y and g. A list of the two rows would copy them.
        found = self.rows @ self.rows[self.slots + slot :: self.slots - slot].T
        with_y, with_g = found.unbind(1)
        return with_y, with_g

    def combine(self, coefficients: Tensor) -> Tensor:
        """Returns the sum of all rows, each times its coefficient, (n,)."""
        coefficients = coefficients.to(self.rows)
        combination = self.rows.new_empty(self.rows.shape[1])
        whole = len(combination) // BLOCKS * BLOCKS
        # A CPU computes a product of a matrix and a vector in one thread, but a batch in several.
        blocks = self.rows[:, :whole].view(len(self.rows), BLOCKS, whole // BLOCKS).transpose(0, 1)
        out = combination[:whole].view(BLOCKS, 1, -1)
        torch.bmm(coefficients.expand(BLOCKS, 1, -1), blocks, out=out)
        torch.mv(self.rows[:, whole:].T, coefficients, out=combination[whole:])
        return combination

    def norm(self, vector: Tensor) -> Tensor:
        """Returns the L1 norm of a vector (n,), a scalar."""
        return total(vector.abs())

    def take_step(self, values: Tensor, direction: Tensor, length: Tensor) -> None:
        """Adds ``length`` times the direction to the values (n,), and stores it as the step s."""
        values.add_(torch.mul(direction, length, out=self.rows[int(self.slot)]))


class GpuHistory(History):
    """The same without a read of the slot by Python, for which a GPU would have to be waited for.

    Everything but ``add_gradient`` can be captured in a CUDA graph.
    """

    def __init__(self, rows: Tensor, slot: Tensor) -> None:
        super().__init__(rows, slot)
        self.difference = torch.zeros_like(self.gradient)

    def add_gradient(self, gradient: Tensor) -> None:
        torch.sub(gradient, self.gradient, out=self.difference)
        self.gradient.copy_(gradient)

    def products(self) -> tuple[Tensor, Tensor]:
        self._write(self.slots, self.difference)
        # One product with both vectors takes up to three times as long as two products.
        return torch.mv(self.rows, self.difference), torch.mv(self.rows, self.gradient)

    def combine(self, coefficients: Tensor) -> Tensor:
        return torch.mv(self.rows.T, coefficients.to(self.rows))

    def norm(self, vector: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(vector, 1)
        return norm

    def take_step(self, values: Tensor, direction: Tensor, length: Tensor) -> None:
        step = direction.mul_(length)
        self._write(0, step)
        values.add_(step)

    def _write(self, first_row: int, vector: Tensor) -> None:
        """Copies a vector into the row of the slot, counted from ``first_row``."""
        # In deterministic mode torch would sort the indices, in case two were equal.
        mode = torch.get_deterministic_debug_mode()
        torch.set_deterministic_debug_mode("default")
        try:
            self.rows.index_copy_(0, self.slot + first_row, vector[None])
        finally:
            torch.set_deterministic_debug_mode(mode)
