"""Sums that are the same to the bit for any number of threads.

torch divides a large sum among its threads, and a CPU's library those of a matrix product, so the
rounding depends on their number. The sum of one row runs on one thread, and a product whose sums
are short is divided among threads by its results. On a GPU torch always adds in the same order.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ROW = 2**12
"""Values per row."""
TERMS = 256
"""Terms of a sum in a matrix product, at most; oneDNN divides sums of 512 in bfloat16, and MKL sums
of 452 in float32 where it does not obey ``MKL_CBWR``."""


def total(values: Tensor) -> Tensor:
    """Returns the sum of all values of a tensor, a scalar."""
    if values.is_cuda:
        return values.sum()
    values = values.flatten()
    whole = len(values) // ROW * ROW
    if not whole:
        return values.sum()
    return total(values[:whole].view(-1, ROW).sum(1)) + values[whole:].sum()


def product(left: Tensor, right: Tensor) -> Tensor:
    """Returns the product of two matrices.

    No sum in it, or in the gradient of ``right``, has more than ``TERMS`` terms at a time.
    """
    import torch

    if left.is_cuda:
        return left @ right
    blocks = (
        reduce(add, map(torch.mm, torch.split(rows, TERMS, 1), torch.split(right, TERMS)))
        for rows in torch.split(left, TERMS)
    )
    return torch.cat(list(blocks))
