"""Total variation: squared differences of neighbouring pixels, a smoothness prior."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.losses.term import ImageTerm
from pipeline.runtime.summation import total
from pipeline.settings import Section, Weight

if TYPE_CHECKING:
    from torch import Tensor


class TotalVariation(ImageTerm):
    """Mahendran & Vedaldi 2015. **Differs:** the paper has no prior; the default weight is 0."""

    name, order, weight_key = "variation", 30, "variation_weight"

    class Settings(Section):
        variation_weight: Weight = 0.0

    def loss(self, image: Tensor) -> Tensor:
        """Returns the mean squared difference of neighbours, vertical plus horizontal."""
        vertical = (image[..., 1:, :] - image[..., :-1, :]).square()
        horizontal = (image[..., :, 1:] - image[..., :, :-1]).square()
        return total(vertical) / vertical.numel() + total(horizontal) / horizontal.numel()
