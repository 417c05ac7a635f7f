"""Sliced Wasserstein loss: the joint distribution of a layer's activations (Heitz et al. 2021)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from pipeline.losses.feature_terms.histogram import quantiles
from pipeline.losses.styles import StyleTerm
from pipeline.losses.term import STYLE_LAYERS, LayerWeights
from pipeline.runtime.summation import product, total
from pipeline.settings import Section, Weight

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class SlicedWassersteinLoss(StyleTerm):
    """Σ_l w_l E_v[1/M Σ_k (sort(Fᵀv)_k − sort(Pᵀv)_k)²] over directions v of length 1.

    Unlike Gram matrices, it is 0 only where the activations have the same distribution.
    **Differs:** one set of C directions for the whole run, where the paper draws new ones at each
    step: L-BFGS needs one function. Sorted values of pictures of different size are compared by
    quantiles.
    """

    name, order, optional = "sliced_wasserstein", 70, True
    statistic = "features"
    keeps_activations, temporaries, tileable = True, 16, False
    weight_key, layers_key = "sliced_wasserstein_weight", "sliced_wasserstein_layers"

    class Settings(Section):
        sliced_wasserstein_layers: LayerWeights = STYLE_LAYERS
        sliced_wasserstein_weight: Weight = 0.0

    def measure(self, value: Tensor) -> Tensor:
        """Returns (C, M) projections, each row sorted, of (1, C, H', W') activations."""
        rows = value.flatten(start_dim=2).squeeze(0)
        vectors = directions(len(rows), rows.dtype, rows.device)
        return product(vectors, rows).sort(dim=1).values

    def loss(self, value: Tensor, target: Tensor, filters: int) -> Tensor:
        difference = value - quantiles(target, value.shape[1])
        return total(difference.square()) / difference.numel()


@lru_cache(maxsize=32)
def directions(channels: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Returns as many random unit vectors as there are channels, (C, C), the same at each call."""
    import torch

    generator = torch.Generator().manual_seed(channels)
    vectors = torch.randn((channels, channels), generator=generator, dtype=torch.float64)
    return (vectors / vectors.square().sum(1, keepdim=True).sqrt()).to(device, dtype)
