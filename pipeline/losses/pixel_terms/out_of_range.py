"""Range loss: squared distances of pixel values from [0, 1], which a picture file can hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.losses.term import WHOLE, LossTerm
from pipeline.runtime.summation import total
from pipeline.settings import Section, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.networks.frozen.statistics import Statistics


class OutOfRange(LossTerm):
    """Crowson's CLIP-guided diffusion, 2021. **Differs:** the paper leaves the image free."""

    name, order, weight_key = "out_of_range", 40, "range_weight"
    sufficient = False
    relative = True  # so that one default suits weights of any unit

    class Settings(Section):
        range_weight: Weight = 0.0

    def parts(self, image: Tensor, statistics: Statistics) -> dict[str, Tensor]:
        """Returns the mean squared distance of all values from [0, 1]; 0 for a picture."""
        return {WHOLE: total((image - image.clamp(0, 1)).square()) / image.numel()}
