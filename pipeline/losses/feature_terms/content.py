"""Content loss: squared differences of activations (Gatys et al. 2016, eq. 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.losses.term import LayerTerm, LayerWeights, LossConvention
from pipeline.runtime.summation import total
from pipeline.settings import Section, Weight

if TYPE_CHECKING:
    from torch import Tensor


class ContentLoss(LayerTerm):
    """α Σ_l w_l L_l, where L_l compares the activations with those of the content image."""

    name, order = "content", 10
    statistic, image_roles = "features", ("content",)
    weight_key, layers_key = "content_weight", "content_layers"

    class Settings(Section):
        content_layers: LayerWeights = {"conv4_2": 1.0}
        content_weight: Weight
        convention: LossConvention = "mean"

    def loss(self, value: Tensor, target: Tensor, filters: int) -> Tensor:
        """Returns the loss of a layer with activations F and targets P, both (1, C, H', W').

        ``paper``: ½ Σ (F − P)². ``mean``: 1 / (N M) Σ (F − P)², with M = H'·W'.
        """
        squares = total((value - target).square())
        if self.settings["convention"] == "paper":
            return squares / 2
        return squares / (filters * value.shape[-2] * value.shape[-1])
