"""The loss terms of Gatys et al. 2016, each a plain function of feature maps.

Axis letters: N filters of a layer, (H', W') their map, M = H'·W' positions.
Every function computes in float32 whatever the features come in.

Two conventions exist for the constants, and with them for the weights that multiply the terms:

``paper``  the equations as printed: content ½ Σ (F − P)², style 1 / (4 N²) Σ (G/M − A/M)².
``mean``   the authors' released code: the mean of the same squared differences,
           1 / (N M) Σ (F − P)² and 1 / N² Σ (G/M − A/M)².

``paper`` wants a content weight smaller by 2 N M, a factor that grows with the picture;
under ``mean`` one ratio α/β serves every size, which is why it is the default. The paper prints
ratios from 1e-4 to 1e-1 under its figures; with our rescaling, which holds dead filters down
(``pipeline.vgg``), the same balance was found at about 0.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def gram_matrix(features: Tensor) -> Tensor:
    """Returns the correlations of filters G_ij = (1/M) Σ_k F_ik F_jk (Gatys et al. 2016, eq. 3).

    **Differs:** divided by M, so that pictures of different sizes can be compared. Where both have
    one size this is the constant 1 / M² that the paper has in eq. 4.

    Args:
        features: (1, N, H', W') activations after ReLU.

    Returns:
        (N, N) float32, symmetric, positive semi-definite.
    """
    maps = features.float().flatten(start_dim=2).squeeze(0)
    return maps @ maps.T / maps.shape[1]


def content_loss_paper(features: Tensor, target: Tensor) -> Tensor:
    """Returns ½ Σ (F − P)² (Gatys et al. 2016, eq. 1) of two (1, N, H', W') tensors, a scalar."""
    return (features.float() - target.float()).square().sum() / 2


def content_loss_mean(features: Tensor, target: Tensor) -> Tensor:
    """Returns the mean of (F − P)² of two (1, N, H', W') tensors, a scalar."""
    return (features.float() - target.float()).square().mean()


def style_loss_paper(gram: Tensor, target: Tensor) -> Tensor:
    """Returns 1 / (4 N²) Σ (G − A)² (Gatys et al. 2016, eq. 4; 1/M² is in the Gram matrices).

    Args:
        gram: (N, N) Gram matrix of the generated image, from ``gram_matrix``.
        target: (N, N) Gram matrix of the style image.
    """
    return (gram - target).square().mean() / 4


def style_loss_mean(gram: Tensor, target: Tensor) -> Tensor:
    """Returns the mean of (G − A)² of two (N, N) Gram matrices, a scalar."""
    return (gram - target).square().mean()


def total_variation(image: Tensor) -> Tensor:
    """Returns the mean squared difference of neighbouring pixels, a scalar.

    Mahendran & Vedaldi 2015. **Differs:** the paper has no such prior; its weight is 0 by default.

    Args:
        image: (1, 3, H, W) float32.
    """
    vertical = (image[..., 1:, :] - image[..., :-1, :]).square().mean()
    horizontal = (image[..., :, 1:] - image[..., :, :-1]).square().mean()
    return vertical + horizontal


PairLoss = Callable[["Tensor", "Tensor"], "Tensor"]

CONVENTIONS: dict[str, tuple[PairLoss, PairLoss]] = {
    "mean": (content_loss_mean, style_loss_mean),
    "paper": (content_loss_paper, style_loss_paper),
}
"""Name of a convention → its content loss and its style loss."""
