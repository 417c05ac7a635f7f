"""Structural similarity: how much of the content image's shapes a picture keeps."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

LUMINANCE = (0.299, 0.587, 0.114)
"""Shares of R, G and B (ITU-R BT.601)."""


def luminance(image: Tensor) -> NDArray[Any]:
    """Returns the luminance of a (1, 3, H, W) image, RGB in [0, 1], as (H, W) float64 in [0, 1]."""
    pixels: NDArray[Any] = np.tensordot(LUMINANCE, image[0].double().numpy(), 1)
    return pixels


def structural_similarity(image: Tensor, other: Tensor) -> float:
    """Returns the mean SSIM of the luminance of two (1, 3, H, W) images, from −1 to 1, the same.

    It is that of Wang et al. 2004, "Image quality assessment: from error visibility to structural
    similarity": a Gaussian window with a standard deviation of 1.5 pixels.
    """
    from skimage.metrics import structural_similarity as ssim  # slow to import

    pair = luminance(image), luminance(other)
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(ssim(*pair, data_range=1.0, **gaussian))
