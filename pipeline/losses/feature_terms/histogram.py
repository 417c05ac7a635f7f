"""Histogram loss: the distribution of each filter's activations (Risser et al. 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.losses.styles import StyleTerm
from pipeline.losses.term import STYLE_LAYERS, LayerWeights
from pipeline.runtime.summation import total
from pipeline.settings import Section, Weight

if TYPE_CHECKING:
    from torch import Tensor


class HistogramLoss(StyleTerm):
    """Σ_l w_l / (N M) Σ (F − R)², where R is F with each filter's histogram matched to the style's.

    R replaces the value of rank k among a filter's activations by the style's k-th of M quantiles.
    It is constant where the ranks are, so this is the mean squared difference of sorted values.
    **Differs:** exact ranks instead of 256 bins; a mean instead of a sum.
    """

    name, order, optional = "histogram", 60, True
    statistic = "features"
    keeps_activations, temporaries, tileable = True, 16, False
    weight_key, layers_key = "histogram_weight", "histogram_layers"

    class Settings(Section):
        histogram_layers: LayerWeights = STYLE_LAYERS
        histogram_weight: Weight = 0.0

    def measure(self, value: Tensor) -> Tensor:
        """Returns the sorted activations of each filter, (C, M), of (1, C, H', W') activations."""
        return value.flatten(start_dim=2).squeeze(0).sort(dim=1).values

    def loss(self, value: Tensor, target: Tensor, filters: int) -> Tensor:
        squares = total((value - quantiles(target, value.shape[1])).square())
        return squares / (filters * value.shape[1])


def quantiles(rows: Tensor, count: int) -> Tensor:
    """Returns ``count`` quantiles, at (k + ½) / count, of each row of (C, M) sorted values.

    Between two values, at (j + ½) / M and (j + 1½) / M, they are interpolated.
    """
    if rows.shape[1] == count:
        return rows
    from torch.nn.functional import interpolate

    return interpolate(rows[None], size=count, mode="linear", align_corners=False)[0]
