"""Moment loss: means and standard deviations of activations (Galerne et al. 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.losses.styles import StyleTerm
from pipeline.losses.term import STYLE_LAYERS, LayerWeights
from pipeline.runtime.summation import total
from pipeline.settings import Section, Weight

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-12
"""Added to a variance, so that the deviation of a filter that is never active has a gradient."""


class MomentLoss(StyleTerm):
    """Σ_l w_l / N Σ_i [(μ_i − μ'_i)² + (σ_i − σ'_i)²] over the N filters of a layer.

    A Gram matrix has μ² + σ² on its diagonal, so one of them can be exchanged for the other, which
    shows as wrong contrasts. **Differs:** means over filters, as in ``convention: mean``.
    """

    name, order, optional = "moments", 50, True
    statistic = "mean_and_gram_matrix"
    weight_key, layers_key = "moments_weight", "moments_layers"

    class Settings(Section):
        moments_layers: LayerWeights = STYLE_LAYERS
        moments_weight: Weight = 0.0

    def measure(self, value: Tensor) -> Tensor:
        """Returns means and standard deviations, (C, 2), from mean and Gram matrix, (C, 1 + C)."""
        import torch

        mean, mean_square = value[:, 0], value[:, 1:].diagonal()
        variance = (mean_square - mean.square()).clamp_min(0)
        return torch.stack([mean, (variance + TINY).sqrt()], 1)

    def loss(self, value: Tensor, target: Tensor, filters: int) -> Tensor:
        return total((value - target).square()) / filters
