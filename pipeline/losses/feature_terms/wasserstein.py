"""Wasserstein loss: means and covariances of activations, as two Gaussians (Crowson 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.losses.styles import StyleTerm
from pipeline.losses.term import STYLE_LAYERS, LayerWeights
from pipeline.runtime.summation import total
from pipeline.settings import Section, Weight

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from pipeline.losses.term import Collect

RIDGE = 1e-4
"""Added to the variances, so that every covariance has a square root with a derivative."""
ITERATIONS = 12
"""Steps of Newton and Schulz towards a square root, as many as the source takes."""


class WassersteinLoss(StyleTerm):
    """Σ_l w_l / N [|μ − μ'|² + tr(Σ + Σ' − 2 (Σ'^½ Σ Σ'^½)^½)], N filters in a layer.

    In brackets is the squared Wasserstein-2 distance of Gaussians with the means μ and covariances
    Σ of the activations (style-transfer-pytorch, ``StyleLossW2``). **Differs:** several styles have
    the weighted sum of their losses, not the loss to the weighted mean of their statistics.
    """

    name, order, optional = "wasserstein", 75, True
    statistic = "mean_and_gram_matrix"
    weight_key, layers_key = "wasserstein_weight", "wasserstein_layers"

    class Settings(Section):
        wasserstein_layers: LayerWeights = STYLE_LAYERS
        wasserstein_weight: Weight = 0.0

    def measure(self, value: Tensor) -> Tensor:
        """Returns mean and covariance side by side from mean and Gram matrix, (C, 1 + C)."""
        import torch

        mean = value[:, :1]
        return torch.cat([mean, value[:, 1:] - mean @ mean.T], 1)

    def set_targets(self, images: Mapping[str, Tensor], collect: Collect) -> None:
        """Adds the square root of the covariance to each target: (C, 1 + C + C)."""
        import torch

        super().set_targets(images, collect)
        for key, target in self.targets.items():
            self.targets[key] = torch.cat([target, square_root(_ridged(target[:, 1:]))], 1)

    def loss(self, value: Tensor, target: Tensor, filters: int) -> Tensor:
        end = 1 + len(target)
        covariance, goal, root = (
            _ridged(value[:, 1:end]),
            _ridged(target[:, 1:end]),
            target[:, end:],
        )
        means = total((value[:, 0] - target[:, 0]).square())
        both = square_root(root @ covariance @ root)
        return (means + (covariance + goal - 2 * both).trace()) / filters


def square_root(matrix: Tensor) -> Tensor:
    """Returns the square root of a positive definite (C, C) matrix, by ``ITERATIONS`` steps.

    The iteration of Newton and Schulz (Higham 2008, §6.3) has matrix products alone, and begins
    with the matrix over its Frobenius norm. Roots of eigenvalues below a thousandth of that norm
    come out too small, as in the source.
    """
    import torch

    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    norm = total(matrix.square()).sqrt()
    root, inverse = matrix / norm, identity
    for _ in range(ITERATIONS):
        step = (3 * identity - inverse @ root) / 2
        root, inverse = root @ step, step @ inverse
    return root * norm.sqrt()


def _ridged(covariance: Tensor) -> Tensor:
    import torch

    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return covariance + RIDGE * identity
