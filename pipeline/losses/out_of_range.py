"""Range loss: the squared distance of pixel values from [0, 1], which a picture file can hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.losses.term import WHOLE, LossTerm
from pipeline.runtime.summation import total
from pipeline.settings import Section, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.networks.frozen.statistics import Statistics


class OutOfRangeSettings(Section):
    """The key of the range loss."""

    range_weight: Weight = 0.0


class OutOfRange(LossTerm):
    """**Differs:** the paper leaves the image free, and so does a weight of 0."""

    name, order, Settings = "out_of_range", 40, OutOfRangeSettings
    weight_key = "range_weight"
    sufficient = False

    def parts(self, image: Tensor, statistics: Statistics) -> dict[str, Tensor]:
        return {WHOLE: out_of_range(image)}


def out_of_range(image: Tensor) -> Tensor:
    """Returns the mean squared distance of the values from [0, 1], a scalar; 0 for a picture.

    The range loss of Crowson's CLIP-guided diffusion (2021).

    Args:
        image: (1, 3, H, W) float32, RGB, 0 black and 1 white.
    """
    return total((image - image.clamp(0, 1)).square()) / image.numel()
