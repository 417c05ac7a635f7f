"""The loss terms of Gatys et al. 2016, each a plain function of feature maps.

Axis letters: N filters of VGG-19's layer, (H', W') their map, M = H'·W' positions. The features
have C channels: VGG-19's have C = N; a small network's stand for N filters in fewer channels, with
the same sums (``pipeline.networks.small_vgg``), so the constants take N and never C.
Gram matrices are float32 whatever the features come in.

Two conventions exist for the constants, and with them for the weights that multiply the terms:

``paper``  the equations as printed: content ½ Σ (F − P)², style 1 / (4 N²) Σ (G/M − A/M)².
``mean``   the authors' released code: the mean of the same squared differences,
           1 / (N M) Σ (F − P)² and 1 / N² Σ (G/M − A/M)².

``paper`` wants a content weight smaller by 2 N M, a factor that grows with the picture;
under ``mean`` one ratio α/β serves every size, which is why it is the default. The paper prints
ratios from 1e-4 to 1e-1 under its figures; with our rescaling, which holds dead filters down
(``networks.vgg``), pictures look so at ratios larger by a factor of 20 to 1000, mostly 100.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.runtime.summation import total

if TYPE_CHECKING:
    from torch import Tensor


def gram_matrix(features: Tensor) -> Tensor:
    """Returns the correlations of filters G_ij = (1/M) Σ_k F_ik F_jk (Gatys et al. 2016, eq. 3).

    A run takes them part by part, in ``pipeline.networks.frozen.extractor``; this is what they are.

    **Differs:** divided by M, so that pictures of different sizes can be compared. Where both have
    one size this is the constant 1 / M² that the paper has in eq. 4.

    Args:
        features: (1, C, H', W') activations after ReLU.

    Returns:
        (C, C) float32, symmetric, positive semi-definite.
    """
    exact = features if features.dtype.itemsize >= 4 else features.float()
    maps = exact.flatten(start_dim=2).squeeze(0)
    return maps @ maps.T / maps.shape[1]


def content_loss_paper(features: Tensor, target: Tensor, filters: int) -> Tensor:  # noqa: ARG001
    """Returns ½ Σ (F − P)² (Gatys et al. 2016, eq. 1), a scalar.

    Args:
        features, target: (1, C, H', W').
        filters: N of the layer, which no constant of this loss holds.
    """
    return total((features - target).square()) / 2


def content_loss_mean(features: Tensor, target: Tensor, filters: int) -> Tensor:
    """Returns 1 / (N M) Σ (F − P)², a scalar; arguments as above."""
    differences = (features - target).square()
    return total(differences) / (filters * features.shape[-2] * features.shape[-1])


def style_loss_paper(gram: Tensor, target: Tensor, filters: int) -> Tensor:
    """Returns 1 / (4 N²) Σ (G − A)² (Gatys et al. 2016, eq. 4; 1/M² is in the Gram matrices).

    Args:
        gram: (C, C) Gram matrix of the generated image, from ``gram_matrix``.
        target: (C, C) Gram matrix of the style image.
        filters: N of the layer.
    """
    return total((gram - target).square()) / (4 * filters**2)


def style_loss_mean(gram: Tensor, target: Tensor, filters: int) -> Tensor:
    """Returns 1 / N² Σ (G − A)², a scalar; arguments as above."""
    return total((gram - target).square()) / filters**2


def total_variation(image: Tensor) -> Tensor:
    """Returns the mean squared difference of neighbouring pixels, a scalar.

    Mahendran & Vedaldi 2015. **Differs:** the paper has no such prior; its weight is 0 by default.

    Args:
        image: (1, 3, H, W) float32.
    """
    vertical = (image[..., 1:, :] - image[..., :-1, :]).square()
    horizontal = (image[..., :, 1:] - image[..., :, :-1]).square()
    return total(vertical) / vertical.numel() + total(horizontal) / horizontal.numel()


def out_of_range(image: Tensor) -> Tensor:
    """Returns the mean squared distance of the values from [0, 1], a scalar; 0 for a picture.

    The range loss of Crowson's CLIP-guided diffusion (2021). **Differs:** the paper has none.

    Args:
        image: (1, 3, H, W) float32, RGB, 0 black and 1 white.
    """
    return total((image - image.clamp(0, 1)).square()) / image.numel()


PairLoss = Callable[["Tensor", "Tensor", int], "Tensor"]

CONVENTIONS: dict[str, tuple[PairLoss, PairLoss]] = {
    "mean": (content_loss_mean, style_loss_mean),
    "paper": (content_loss_paper, style_loss_paper),
}
"""Name of a convention → its content loss and its style loss."""
