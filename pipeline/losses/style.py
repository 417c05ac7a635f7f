"""Style loss: squared differences of Gram matrices (Gatys et al. 2016, eq. 3 to 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.losses.term import LayerWeights, LossConvention, LossTerm
from pipeline.networks.layers import LAYERS, Needs
from pipeline.runtime.summation import total
from pipeline.settings import Section, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.losses.term import Collect, PairLoss
    from pipeline.networks.frozen.statistics import Statistics


class StyleSettings(Section):
    """The keys of the style loss."""

    style_layers: LayerWeights
    style_weight: Weight
    convention: LossConvention = "mean"


class StyleLoss(LossTerm):
    """β Σ_l w_l E_l, where E_l compares a layer's Gram matrix with that of the style image.

    The style image may have any size, since Gram matrices are divided by the number of positions.
    """

    name, order, Settings = "style", 20, StyleSettings
    weight_key, layers_key = "style_weight", "style_layers"
    image_roles = ("style",)

    @property
    def needs(self) -> Needs:
        return {"gram_matrix": tuple(self.part_weights)}

    def set_targets(self, images: Mapping[str, Tensor], collect: Collect) -> None:
        self.targets = collect(images["style"], self.needs)["gram_matrix"]

    def parts(self, image: Tensor, statistics: Statistics) -> dict[str, Tensor]:
        loss, grams = STYLE_LOSSES[self.settings["convention"]], statistics["gram_matrix"]
        return {
            name: loss(grams[name], self.targets[name], LAYERS[name].channels_out)
            for name in self.part_weights
        }


def gram_matrix(features: Tensor) -> Tensor:
    """Returns the correlations of filters G_ij = (1/M) Σ_k F_ik F_jk (Gatys et al. 2016, eq. 3).

    This is the definition. A run computes it in chunks, in ``pipeline.networks.frozen.gram``.

    **Differs:** divided by the number of positions M, so that pictures of different sizes can be
    compared. Where both have one size, this is the constant 1 / M² that the paper has in eq. 4.

    Args:
        features: (1, C, H', W') activations after ReLU, F.

    Returns:
        (C, C) float32 for features of half precision, else of the features' dtype; symmetric,
        positive semi-definite.
    """
    exact = features if features.dtype.itemsize >= 4 else features.float()
    maps = exact.flatten(start_dim=2).squeeze(0)
    return maps @ maps.T / maps.shape[1]


def style_loss_paper(gram: Tensor, target: Tensor, filters: int) -> Tensor:
    """Returns 1 / (4 N²) Σ (G − A)² (Gatys et al. 2016, eq. 4; 1/M² is in the Gram matrices).

    Args:
        gram: G, (C, C), of the generated image.
        target: A, (C, C), of the style image.
        filters: N of the layer.
    """
    return total((gram - target).square()) / (4 * filters**2)


def style_loss_mean(gram: Tensor, target: Tensor, filters: int) -> Tensor:
    """Returns 1 / N² Σ (G − A)², a scalar; arguments as above."""
    return total((gram - target).square()) / filters**2


STYLE_LOSSES: dict[str, PairLoss] = {"mean": style_loss_mean, "paper": style_loss_paper}
"""Convention → loss of a layer."""
