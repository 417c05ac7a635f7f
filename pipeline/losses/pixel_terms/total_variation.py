"""Total variation: differences of neighbouring pixels, a smoothness prior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline.losses.term import WHOLE, LossTerm
from pipeline.runtime.summation import total
from pipeline.settings import Section, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.networks.frozen.statistics import Statistics


VariationForm = Literal["mean", "half_sum", "absolute", "stencil"]
"""How differences of neighbours make a loss; the last three are those of other tools."""
NEURAL_STYLE_WHITE, WHITE = 256, 255
"""What the networks of neural-style and of neural-style-pt take for a white pixel."""


class TotalVariation(LossTerm):
    """Mahendran & Vedaldi 2015. **Differs:** the paper has no prior; the default weight is 0.

    With v and h the differences of vertical and horizontal neighbours of the image in [0, 1]:

    - ``mean``: mean v² + mean h².
    - ``half_sum``: ½ Σ (256 v)² + ½ Σ (256 h)², without v in the last column and h in the last row.
      Its gradient is the one that Johnson's neural-style (2015) adds.
    - ``absolute``: Σ |255 v| + Σ |255 h|, as in neural-style-pt.
    - ``stencil``: ⅔ mean v² + ⅔ mean h² + ⅙ mean d² + ⅙ mean e² with the differences d and e along
      both diagonals, of the image with one more pixel at each edge, a copy of the last. As in
      Crowson's style-transfer-pytorch.
    """

    name, order, weight_key = "variation", 30, "variation_weight"

    class Settings(Section):
        variation_weight: Weight = 0.0
        variation_form: VariationForm = "mean"

    def parts(self, image: Tensor, statistics: Statistics) -> dict[str, Tensor]:
        """Returns the loss. A mean over no neighbours is 0, as in a picture one pixel high."""
        form = self.settings["variation_form"]
        if form == "stencil":
            return {WHOLE: _stencil(image)}
        vertical = image[..., 1:, :] - image[..., :-1, :]
        horizontal = image[..., :, 1:] - image[..., :, :-1]
        if form == "absolute":
            return {WHOLE: WHITE * (total(vertical.abs()) + total(horizontal.abs()))}
        if form == "half_sum":
            vertical, horizontal = vertical[..., :-1], horizontal[..., :-1, :]
            squares = total(vertical.square()) + total(horizontal.square())
            return {WHOLE: NEURAL_STYLE_WHITE**2 / 2 * squares}
        return {WHOLE: _mean_square(vertical) + _mean_square(horizontal)}


def _stencil(image: Tensor) -> Tensor:
    """Returns the form ``stencil``: mean squared differences of all eight neighbours, weighted."""
    from torch.nn.functional import pad

    larger = pad(image, (1, 1, 1, 1), "replicate")
    inner = larger[..., 1:-1, 1:-1]
    across = _mean_square(larger[..., 1:-1, 2:] - inner)
    down = _mean_square(larger[..., 2:, 1:-1] - inner)
    falling = _mean_square(larger[..., 1:, 1:] - larger[..., :-1, :-1])
    rising = _mean_square(larger[..., 1:, :-1] - larger[..., :-1, 1:])
    return (across + down) * 2 / 3 + (falling + rising) / 6


def _mean_square(differences: Tensor) -> Tensor:
    return total(differences.square()) / max(1, differences.numel())
