"""The history of L-BFGS divided among the processes of a group, each of which has some columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.optim.history import CompactHistory, History
from pipeline.runtime.process_group import ProcessGroup


class DividedHistory(History):
    """A history of a leader, whose pairs are divided among the processes of its group.

    The sums over the values are added up, and what a step needs of all values goes to the leader.
    ``gradient`` is whole; ``rows`` are those of the leader's part.

    Args:
        parameter: of L-BFGS, on the group's device.
        slot: as for ``History``.
        slots: for pairs.
        dtype: of the pairs.
        on_host: whether they are stored in the host's memory.
    """

    def __init__(
        self,
        group: ProcessGroup,
        parameter: Tensor,
        slot: Tensor,
        slots: int,
        dtype: torch.dtype,
        on_host: bool,
    ) -> None:
        arguments = parameter.numel(), slots, dtype, on_host, parameter.dtype
        self._copies, self._own = group.copies(_Part, *arguments), _Part(group, *arguments)
        super().__init__(self._own.history.rows, slot)
        self.gradient = parameter.new_zeros(parameter.numel())

    def add_gradient(self, gradient: Tensor) -> None:
        self._call("add_gradient", int(self.slot), gradient)
        self.gradient.copy_(gradient)

    def products(self) -> tuple[Tensor, Tensor]:
        with_y, with_g = self._call("products")
        return with_y, with_g

    def combine(self, coefficients: Tensor) -> Tensor:
        combination: Tensor = self._call("combine", coefficients)
        return combination

    def write_step(self, step: Tensor) -> None:
        self._call("write_step", int(self.slot), step)

    def whole_rows(self) -> Tensor:
        """Returns the rows of all processes, (2 · slots, n), in the host's memory."""
        return torch.stack([self._call("row", number).cpu() for number in range(len(self.rows))])

    def load(self, rows: Tensor, gradient: Tensor) -> None:
        """Stores what ``whole_rows`` returned, and the gradient."""
        for number, row in enumerate(rows):
            self._call("load_row", number, row)
        self._call("load_gradient", gradient)
        self.gradient.copy_(gradient)

    def _call(self, method: str, *arguments: Any) -> Any:
        self._copies.call(method, *arguments)
        return getattr(self._own, method)(*arguments)


class _Part:
    """The columns of all rows that one process has, as a history of its own."""

    def __init__(
        self,
        group: ProcessGroup,
        count: int,
        slots: int,
        dtype: torch.dtype,
        on_host: bool,
        gradient_dtype: torch.dtype,
    ) -> None:
        self.group, self.count = group, count
        edge = -(-count // group.size)
        self.columns = slice(group.rank * edge, min(count, (group.rank + 1) * edge))
        own = len(range(count)[self.columns])
        self.history = CompactHistory(
            torch.zeros((2 * slots, own), dtype=dtype, device="cpu" if on_host else group.device),
            torch.zeros(1, dtype=torch.int64, device=group.device),
            torch.zeros(own, dtype=gradient_dtype, device=group.device),
        )

    def add_gradient(self, slot: int, gradient: Tensor) -> None:
        self.history.slot.fill_(slot)
        self.history.add_gradient(gradient[self.columns])

    def products(self) -> Tensor:
        return self.group.add_up(torch.stack(self.history.products()))

    def combine(self, coefficients: Tensor) -> Tensor:
        return self._whole(self.history.combine(coefficients))

    def write_step(self, slot: int, step: Tensor) -> None:
        self.history.slot.fill_(slot)
        self.history.write_step(step[self.columns])

    def row(self, number: int) -> Tensor:
        return self._whole(self.history.rows[number].to(self.group.device))

    def load_row(self, number: int, row: Tensor) -> None:
        self.history.rows[number].copy_(row[self.columns])

    def load_gradient(self, gradient: Tensor) -> None:
        self.history.gradient.copy_(gradient[self.columns])

    def _whole(self, own: Tensor) -> Tensor:
        whole = own.new_zeros(self.count)
        whole[self.columns] = own
        return self.group.add_up(whole)
