"""The large part of L-BFGS: its history as the rows of one matrix, and what is done with them."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.runtime.summation import total

BLOCKS = 8
"""Parts of the values, by which a CPU's threads share a sum of rows."""


class Basis:
    """Steps s, differences y of gradients, and the gradient, of each member.

    Args:
        rows: (members, 2 · places + 1, values): a step for each place, then a difference for each,
            then the gradient. Is changed.
        spare: (members,), each one's place for the step being taken and for its difference.
    """

    def __init__(self, rows: Tensor, spare: Tensor) -> None:
        self.rows, self.spare = rows, spare
        self.places = rows.shape[1] // 2

    @property
    def gradient(self) -> Tensor:
        """The latest received, (members, values)."""
        return self.rows[:, -1]

    def receive(self, gradient: Tensor) -> None:
        """Takes a gradient in, and what it differs by from the one before."""
        for place, new, rows in zip(self.spare.tolist(), gradient, self.rows, strict=True):
            torch.sub(new, rows[-1], out=rows[self.places + place])
        self.gradient.copy_(gradient)

    def products(self) -> tuple[Tensor, Tensor]:
        """Returns the products of all rows with the newest difference and with the gradient."""
        found = []
        for place, rows in zip(self.spare.tolist(), self.rows, strict=True):
            # A slice is both rows, where a list of them would be a copy.
            found.append(rows @ rows[self.places + place :: self.places - place].T)
        with_difference, with_gradient = torch.stack(found).unbind(2)
        return with_difference, with_gradient

    def along(self, coefficients: Tensor) -> Tensor:
        """Returns the sum of each member's rows, each so many times, (members, values)."""
        sums = self.rows.new_empty(self.gradient.shape)
        whole = sums.shape[1] // BLOCKS * BLOCKS
        for rows, each, out in zip(self.rows, coefficients.to(sums), sums, strict=True):
            # A product of a matrix and a vector would be one thread's.
            blocks = rows[:, :whole].unflatten(1, (BLOCKS, whole // BLOCKS)).transpose(0, 1)
            in_blocks = out[:whole].view(BLOCKS, 1, -1)
            torch.bmm(each.expand(BLOCKS, 1, -1), blocks, out=in_blocks)
            torch.mv(rows[:, whole:].T, each, out=out[whole:])
        return sums

    def norms(self, vectors: Tensor) -> Tensor:
        """Returns the L1 norm of each of (members, values)."""
        return torch.stack([total(vector.abs()) for vector in vectors])

    def move(self, values: Tensor, direction: Tensor, length: Tensor) -> None:
        """Moves (members, values) so far in a direction, and remembers the step."""
        moved = zip(self.spare.tolist(), self.rows, values, direction, length, strict=True)
        for place, rows, value, each, far in moved:
            value.add_(torch.mul(each, far, out=rows[place]))


class UnaskedBasis(Basis):
    """The same, for a GPU that nothing is asked of: which place is the spare one Python never sees.

    All but ``receive`` can be recorded.
    """

    def __init__(self, rows: Tensor, spare: Tensor) -> None:
        super().__init__(rows, spare)
        self.difference = torch.zeros_like(self.gradient)
        self.begins = torch.arange(len(rows), device=rows.device) * rows.shape[1]

    def receive(self, gradient: Tensor) -> None:
        torch.sub(gradient, self.gradient, out=self.difference)
        self.gradient.copy_(gradient)

    def products(self) -> tuple[Tensor, Tensor]:
        self._write(self.places, self.difference)
        # One after the other: both at once take up to three times as long.
        return self._products(self.difference), self._products(self.gradient)

    def along(self, coefficients: Tensor) -> Tensor:
        found = zip(self.rows, coefficients.to(self.rows), strict=True)
        return torch.stack([torch.mv(rows.T, each) for rows, each in found])

    def norms(self, vectors: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(vectors, 1, dim=1)
        return norms

    def move(self, values: Tensor, direction: Tensor, length: Tensor) -> None:
        step = direction.mul_(length[:, None])
        self._write(0, step)
        values.add_(step)

    def _products(self, vectors: Tensor) -> Tensor:
        pairs = zip(self.rows, vectors, strict=True)
        return torch.stack([torch.mv(rows, vector) for rows, vector in pairs])

    def _write(self, after: int, vectors: Tensor) -> None:
        """Puts a vector of each member into its spare place, counted from the row ``after``."""
        # In deterministic mode torch would sort the places, as if two vectors might go to the same.
        mode = torch.get_deterministic_debug_mode()
        torch.set_deterministic_debug_mode("default")
        try:
            self.rows.flatten(0, 1).index_copy_(0, self.begins + after + self.spare, vectors)
        finally:
            torch.set_deterministic_debug_mode(mode)
