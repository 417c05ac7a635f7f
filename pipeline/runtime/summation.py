"""Sums that come out the same to the bit, whatever the number of threads.

torch shares a large sum out among its threads, so how it is rounded depends on how many there are.
The sum of a row is one thread's. A GPU sums the same way every time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ROW = 2**12


def total(values: Tensor) -> Tensor:
    """Returns the sum of all values, a scalar; of any shape."""
    if values.is_cuda:
        return values.sum()
    values = values.flatten()
    whole = len(values) // ROW * ROW
    if not whole:
        return values.sum()
    return total(values[:whole].view(-1, ROW).sum(1)) + values[whole:].sum()
