"""A sum that is the same to the bit for any number of threads.

torch divides a large sum among its threads, so its rounding depends on their number. The sum of one
row runs on one thread. On a GPU torch always adds in the same order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ROW = 2**12
"""Values per row."""


def total(values: Tensor) -> Tensor:
    """Returns the sum of all values of a tensor, a scalar."""
    if values.is_cuda:
        return values.sum()
    values = values.flatten()
    whole = len(values) // ROW * ROW
    if not whole:
        return values.sum()
    return total(values[:whole].view(-1, ROW).sum(1)) + values[whole:].sum()
