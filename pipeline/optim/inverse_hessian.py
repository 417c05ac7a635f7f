"""The inverse Hessian of L-BFGS in compact form: small matrices of dot products.

Nothing here is as large as the parameter. All of it is tensors on the parameter's device, changed
in place without a read by Python: a GPU need not be waited for, and a CUDA graph can capture it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MIN_CURVATURE = 1e-10
"""A pair whose sᵀy is not above this times the loss is dropped.

**Differs:** torch drops it at 1e-10 itself, whatever the unit of the loss."""
MAX_FACTOR, MIN_FACTOR, FACTOR_GROWTH = 2.0, 0.25, 1.25
"""Range of ``InverseHessian.factor``, and its growth at a step that did not raise the loss."""


class InverseHessian(NamedTuple):
    """H, the approximation that the pairs (sᵢ, yᵢ) make of the inverse Hessian, from H₀ = γI.

    Byrd, Nocedal & Schnabel 1994, "Representations of quasi-Newton matrices", theorem 2.2::

        H = γI + [S γY] · [R⁻ᵀ(D + γYᵀY)R⁻¹  −R⁻ᵀ] · [Sᵀ ]
                          [−R⁻¹               0  ]   [γYᵀ]

    torch's two loops over the pairs compute the same product Hg. There are P slots for pairs, one
    of which is free, for the step being taken; the pairs follow it in order of age, around the end
    of the slots. Rows, columns and entries of slots without a pair are 0.

    ==============  ======  ==================================================================
    field           symbol  meaning
    ==============  ======  ==================================================================
    ``inverse_r``   R⁻¹     (P, P); Rᵢⱼ = sᵢᵀyⱼ where pair i is not newer than pair j, else 0
    ``y_products``  YᵀY     (P, P)
    ``curvatures``  D       (P,), the diagonal sᵢᵀyᵢ
    ``slot``        –       (1,) int64, the free slot
    ``factor``      –       scalar, what γ is multiplied by with ``scaling="mean"``
    ``loss``        –       scalar, the latest loss
    ==============  ======  ==================================================================
    """

    inverse_r: Tensor
    y_products: Tensor
    curvatures: Tensor
    slot: Tensor
    factor: Tensor
    loss: Tensor

    @classmethod
    def without_pairs(cls, history_size: int, device: torch.device) -> InverseHessian:
        """Returns the state before the first step, with a slot more than pairs are remembered."""
        # Apple's GPUs have no float64.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        slots = history_size + 1
        square = torch.zeros((slots, slots), dtype=dtype, device=device)
        return cls(
            square,
            square.clone(),
            square[0].clone(),
            torch.zeros(1, dtype=torch.int64, device=device),
            square.new_full((), MAX_FACTOR),
            square.new_full((), torch.inf),
        )

    def add_pair(self, products: Tensor, loss: Tensor) -> None:
        """Adds the pair of the latest step, unless its curvature sᵀy is too small.

        ``products`` are the dot products of the history's rows with the newest y, (rows,); the loss
        is that after the step, a scalar.
        """
        count = len(self.curvatures)
        with_s, with_y, _ = torch.split(products.to(self.inverse_r), [count, count, 1])
        slots = torch.arange(count, device=self.slot.device)
        new = slots == self.slot
        curvature = with_s.gather(0, self.slot)
        curved = curvature > MIN_CURVATURE * loss.abs()
        # R gains a column: R⁻¹ gains one too, and its other columns stay as they are.
        column = (new.to(self.inverse_r) - _product(self.inverse_r, with_s)) / curvature
        column.masked_fill_(~curved, 0)
        self.inverse_r.copy_(torch.where(new, column[:, None], self.inverse_r))
        with_new_row = torch.where(new[:, None], with_y, self.y_products)
        self.y_products.copy_(torch.where(new, with_y[:, None], with_new_row))
        self.curvatures.copy_(torch.where(new, curvature.masked_fill(~curved, 0), self.curvatures))
        # The slot after a new pair holds the oldest pair, which is dropped to free the slot.
        self.slot.add_(curved).remainder_(count)
        oldest = slots == self.slot
        self.inverse_r.masked_fill_(oldest | oldest[:, None], 0)
        self.curvatures.masked_fill_(oldest, 0)

    def adapt_factor(self, loss: Tensor) -> None:
        """Halves the factor if the latest step raised the loss (a scalar), else lets it grow."""
        loss = loss.to(self.loss)
        grown = (self.factor * FACTOR_GROWTH).clamp(max=MAX_FACTOR)
        halved = (self.factor / 2).clamp(min=MIN_FACTOR)
        self.factor.copy_(torch.where(loss <= self.loss, grown, halved))
        self.loss.copy_(loss)

    def direction(self, products: Tensor, by_mean: bool) -> tuple[Tensor, Tensor]:
        """Returns d = −Hg as coefficients of the history's rows, (rows,), and gᵀd, a scalar.

        ``products`` are the dot products of the rows with the gradient g, (rows,). γ is the newest
        pair's sᵢᵀyᵢ / yᵢᵀyᵢ, or with ``by_mean`` the mean over the pairs times ``factor``.
        """
        count = len(self.curvatures)
        products = products.to(self.inverse_r)
        with_s, with_y, _ = torch.split(products, [count, count, 1])
        gamma = self._gamma(by_mean)
        of_y = _product(self.inverse_r, with_s)
        inner = _product(self.y_products, of_y) - with_y
        of_s = _product(self.inverse_r.mT, self.curvatures * of_y + gamma * inner)
        coefficients = torch.cat([-of_s, gamma * of_y, -gamma])
        return coefficients, (coefficients * products).sum()

    def _gamma(self, by_mean: bool) -> Tensor:
        """Returns γ, (1,); 1 without a pair."""
        remembered = self.curvatures > 0
        quotients = self.curvatures / self.y_products.diagonal()
        quotients = quotients.masked_fill(~remembered, 0)
        if by_mean:
            gamma = self.factor * quotients.sum(0, keepdim=True) / remembered.sum()
        else:
            newest = (self.slot - 1).remainder(len(quotients))
            gamma = quotients.gather(0, newest)
        return gamma.masked_fill(~remembered.any(), 1)


def _product(matrix: Tensor, vector: Tensor) -> Tensor:
    """Returns matrix · vector, summed in the same order whatever the number of threads."""
    return (matrix * vector).sum(1)
