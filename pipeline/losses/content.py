"""Content loss: squared differences of activations (Gatys et al. 2016, eq. 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.losses.term import LayerWeights, LossConvention, LossTerm
from pipeline.networks.layers import LAYERS, Needs
from pipeline.runtime.summation import total
from pipeline.settings import Section, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.losses.term import Collect, PairLoss
    from pipeline.networks.frozen.statistics import Statistics


class ContentSettings(Section):
    """The keys of the content loss."""

    content_layers: LayerWeights = Field({"conv4_2": 1.0})
    content_weight: Weight
    convention: LossConvention = "mean"


class ContentLoss(LossTerm):
    """α Σ_l w_l L_l, where L_l compares a layer's activations with those of the content image."""

    name, order, Settings = "content", 10, ContentSettings
    weight_key, layers_key = "content_weight", "content_layers"
    image_roles = ("content",)

    @property
    def needs(self) -> Needs:
        return {"features": tuple(self.part_weights)}

    def set_targets(self, images: Mapping[str, Tensor], collect: Collect) -> None:
        self.targets = collect(images["content"], self.needs)["features"]

    def parts(self, image: Tensor, statistics: Statistics) -> dict[str, Tensor]:
        loss, features = CONTENT_LOSSES[self.settings["convention"]], statistics["features"]
        return {
            name: loss(features[name], self.targets[name], LAYERS[name].channels_out)
            for name in self.part_weights
        }


def content_loss_paper(features: Tensor, target: Tensor, filters: int) -> Tensor:  # noqa: ARG001
    """Returns ½ Σ (F − P)² (Gatys et al. 2016, eq. 1), a scalar.

    Args:
        features, target: F and P, (1, C, H', W').
        filters: N of the layer, which this convention does not use.
    """
    return total((features - target).square()) / 2


def content_loss_mean(features: Tensor, target: Tensor, filters: int) -> Tensor:
    """Returns 1 / (N M) Σ (F − P)², a scalar; arguments as above."""
    differences = (features - target).square()
    return total(differences) / (filters * features.shape[-2] * features.shape[-1])


CONTENT_LOSSES: dict[str, PairLoss] = {"mean": content_loss_mean, "paper": content_loss_paper}
"""Convention → loss of a layer."""
