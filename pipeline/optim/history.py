"""The history of L-BFGS: steps, gradient differences and the gradient as rows of one matrix."""

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.runtime.summation import TERMS

PART = 2**20
"""Values that a ``CompactHistory`` converts at a time."""
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
        self.gradient = rows[-1]

    def add_gradient(self, gradient: Tensor) -> None:
        """Stores the new gradient (n,), and y, its difference from the one before."""
        self._write(self.slots, gradient - self.gradient)
        self.gradient.copy_(gradient)

    def products(self) -> tuple[Tensor, Tensor]:
        """Returns the dot products of all rows with the newest y and with g, each (rows,)."""
        slot = int(self.slot)
        # The slice holds exactly y and g. A list of the two rows would copy them.
        newest = self.rows[self.slots + slot :: self.slots - slot]
        count = self.rows.shape[1] // TERMS
        whole = count * TERMS
        parts = self.rows[:, :whole].view(len(self.rows), count, TERMS).transpose(0, 1)
        newest_parts = newest[:, :whole].view(2, count, TERMS).permute(1, 2, 0)
        sums = torch.bmm(parts, newest_parts).sum(0)
        with_y, with_g = (sums + self.rows[:, whole:] @ newest[:, whole:].T).unbind(1)
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

    def take_step(self, values: Tensor, direction: Tensor, length: Tensor) -> None:
        """Adds the direction, multiplied in place by ``length``, to the values; stores it as s."""
        step = direction.mul_(length)
        self.write_step(step)
        values.add_(step)

    def write_step(self, step: Tensor) -> None:
        """Stores a step as s."""
        self._write(0, step)

    def _write(self, first_row: int, vector: Tensor) -> None:
        """Copies a vector into the row of the slot, counted from ``first_row``."""
        self.rows[first_row + int(self.slot)].copy_(vector)


class GpuHistory(History):
    """The same without a read of the slot by Python, for which a GPU would have to be waited for.

    Everything but ``add_gradient`` can be captured in a CUDA graph.
    """

    def products(self) -> tuple[Tensor, Tensor]:
        difference = self.rows.index_select(0, self.slots + self.slot)[0]
        # One product with both vectors takes up to three times as long as two products.
        return torch.mv(self.rows, difference), torch.mv(self.rows, self.gradient)

    def combine(self, coefficients: Tensor) -> Tensor:
        return torch.mv(self.rows.T, coefficients.to(self.rows))

    def _write(self, first_row: int, vector: Tensor) -> None:
        # In deterministic mode torch would sort the indices, in case two were equal.
        mode = torch.get_deterministic_debug_mode()
        torch.set_deterministic_debug_mode("default")
        try:
            self.rows.index_copy_(0, self.slot + first_row, vector[None])
        finally:
            torch.set_deterministic_debug_mode(mode)


class CompactHistory(History):
    """A history whose pairs have a lower precision, or are on the host while a GPU computes.

    Everything is computed in the gradient's precision and on its device, part by part. The gradient
    itself is not rounded.

    Args:
        rows: (2 · slots, n), without the row for g.
        gradient: (n,), g.
    """

    def __init__(self, rows: Tensor, slot: Tensor, gradient: Tensor) -> None:
        super().__init__(rows, slot)
        self.gradient = gradient

    def products(self) -> tuple[Tensor, Tensor]:
        sums = [torch.stack(part.products()) for part in self._parts()]
        with_y, with_g = torch.stack(sums).sum(0).unbind()
        return with_y, with_g

    def combine(self, coefficients: Tensor) -> Tensor:
        return torch.cat([part.combine(coefficients) for part in self._parts()])

    def _parts(self) -> Iterator[History]:
        """Yields the histories of consecutive parts of the values, in the gradient's precision."""
        for start in range(0, len(self.gradient), PART):
            part = slice(start, start + PART)
            rows = self.rows[:, part].to(self.gradient)
            yield History(torch.cat([rows, self.gradient[None, part]]), self.slot)
