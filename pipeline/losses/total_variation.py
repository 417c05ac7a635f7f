"""Total variation: squared differences of neighbouring pixels, a smoothness prior."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.losses.term import WHOLE, LossTerm
from pipeline.runtime.summation import total
from pipeline.settings import Section, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.networks.frozen.statistics import Statistics


class TotalVariation(LossTerm):
    """Mahendran & Vedaldi 2015. **Differs:** the paper has no prior; the default weight is 0."""

    name, order, weight_key = "variation", 30, "variation_weight"

    class Settings(Section):
        variation_weight: Weight = 0.0

    def parts(self, image: Tensor, statistics: Statistics) -> dict[str, Tensor]:
        """Returns the mean squared difference of neighbours, vertical plus horizontal.

        A mean over no neighbours is 0, as in a picture that is one pixel high.
        """
        vertical = (image[..., 1:, :] - image[..., :-1, :]).square()
        horizontal = (image[..., :, 1:] - image[..., :, :-1]).square()
        down, across = (total(each) / max(1, each.numel()) for each in (vertical, horizontal))
        return {WHOLE: down + across}
