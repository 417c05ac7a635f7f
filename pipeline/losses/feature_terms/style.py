"""Style loss: squared differences of Gram matrices (Gatys et al. 2016, eq. 3 to 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pipeline.losses.styles import StyleTerm, weighted_sum
from pipeline.losses.term import LayerWeights, LossConvention
from pipeline.runtime.summation import total
from pipeline.settings import Section, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.losses.term import Collect

StyleMix = Literal["losses", "gram_matrices"]
"""How several styles mix. ``losses``: Σ_s λ_s E(G, A_s). ``gram_matrices``: E(G, Σ_s λ_s A_s)."""


class StyleLoss(StyleTerm):
    """β Σ_l w_l E_l, where E_l compares the Gram matrix with those of the style images.

    A style image may have any size: Gram matrices are divided by the number of positions.
    """

    name, order = "style", 20
    statistic = "gram_matrix"
    weight_key, layers_key = "style_weight", "style_layers"

    class Settings(Section):
        style_layers: LayerWeights
        style_weight: Weight
        style_mix: StyleMix = "losses"
        convention: LossConvention = "mean"

    def compared_styles(self, layer: str) -> dict[str, float]:
        shares = self.shares(layer)
        if self.settings["style_mix"] == "losses":
            return shares
        return {next(iter(shares)): 1.0}

    def set_targets(self, images: Mapping[str, Tensor], collect: Collect) -> None:
        super().set_targets(images, collect)
        if self.settings["style_mix"] == "gram_matrices":
            targets, self.targets = self.targets, {}
            for layer in self.part_weights:
                shares = self.shares(layer)
                mixed = ((share, targets[f"{layer}@{role}"]) for role, share in shares.items())
                self.targets[f"{layer}@{next(iter(shares))}"] = weighted_sum(mixed)

    def loss(self, value: Tensor, target: Tensor, filters: int) -> Tensor:
        """Returns the loss of a layer with Gram matrix G and target A, both (C, C).

        ``paper``: 1 / (4 N²) Σ (G − A)² (eq. 4, whose 1 / M² is in the Gram matrices).
        ``mean``: 1 / N² Σ (G − A)².
        """
        squares = total((value - target).square())
        return squares / ((4 if self.settings["convention"] == "paper" else 1) * filters**2)


def gram_matrix(features: Tensor) -> Tensor:
    """Returns the correlations of filters G_ij = (1/M) Σ_k F_ik F_jk (Gatys et al. 2016, eq. 3).

    F are (1, C, H', W') activations after ReLU; G is (C, C), float32 or more precise. A run
    computes it in chunks (``networks.frozen.statistics``).

    **Differs:** divided by the number of positions M, so that pictures of different sizes can be
    compared. Where both have one size, this is the constant 1 / M² that the paper has in eq. 4.
    """
    exact = features if features.dtype.itemsize >= 4 else features.float()
    maps = exact.flatten(start_dim=2).squeeze(0)
    return maps @ maps.T / maps.shape[1]
