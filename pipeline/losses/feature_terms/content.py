"""Content loss: squared differences of activations (Gatys et al. 2016, eq. 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.losses.term import LayerTerm, LayerWeights, LossConvention
from pipeline.networks.layers import NO_CONTEXT
from pipeline.runtime.summation import total
from pipeline.settings import Section, Weight

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from pipeline.losses.term import Collect


class ContentLoss(LayerTerm):
    """α Σ_l w_l L_l, where L_l compares the activations with those of the content image."""

    name, order = "content", 10
    statistic, image_roles = "squared_distance@content", ("content",)
    keeps_activations, temporaries = True, 8
    weight_key, layers_key = "content_weight", "content_layers"

    class Settings(Section):
        content_layers: LayerWeights = {"conv4_2": 1.0}
        content_weight: Weight
        convention: LossConvention = "mean"

    def set_targets(self, images: Mapping[str, Tensor], collect: Collect) -> None:
        needs = {"features": tuple(self.part_weights)}
        self.targets = collect(images["content"], needs, NO_CONTEXT)["features"]

    @property
    def references(self) -> dict[str, Mapping[str, Tensor]]:
        return {"content": self.targets}

    def sizes(self) -> dict[str, float]:
        """Returns the losses of features that are all 0."""
        distances = {
            layer: squared_distance(target, target.new_zeros(()))
            for layer, target in self.targets.items()
        }
        return {part: float(loss) for part, loss in self._losses(distances).items()}

    def loss(self, value: Tensor, target: Tensor, filters: int) -> Tensor:
        """Returns the loss of a layer with the ``squared_distance`` of F and P, the target.

        ``paper``: ½ Σ (F − P)². ``mean``: 1 / (N M) Σ (F − P)², with M = H'·W'.
        """
        if self.settings["convention"] == "paper":
            return value * target[0, 0].numel() / 2
        return value / filters


def squared_distance(features: Tensor, target: Tensor) -> Tensor:
    """Returns Σ (F − P)² / M of (1, C, H', W') activations F and P.

    A run computes it piece by piece (``networks.frozen.statistics``).
    """
    return total((features - target).square()) / features[0, 0].numel()
