"""Total variation: the squared differences of neighbouring pixels, a smoothness prior."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.losses.term import WHOLE, LossTerm
from pipeline.runtime.summation import total
from pipeline.settings import Section, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.networks.frozen.statistics import Statistics


class TotalVariationSettings(Section):
    """The key of the total variation."""

    variation_weight: Weight = 0.0


class TotalVariation(LossTerm):
    """**Differs:** the paper has no such prior; its weight is 0 by default."""

    name, order, Settings = "variation", 30, TotalVariationSettings
    weight_key = "variation_weight"

    def parts(self, image: Tensor, statistics: Statistics) -> dict[str, Tensor]:
        return {WHOLE: total_variation(image)}


def total_variation(image: Tensor) -> Tensor:
    """Returns the mean squared difference of neighbouring pixels, a scalar.

    Mahendran & Vedaldi 2015, "Understanding deep image representations by inverting them".

    Args:
        image: (1, 3, H, W) float32.
    """
    vertical = (image[..., 1:, :] - image[..., :-1, :]).square()
    horizontal = (image[..., :, 1:] - image[..., :, :-1]).square()
    return total(vertical) / vertical.numel() + total(horizontal) / horizontal.numel()
