"""Gives a style image or a result the colours of the content image (Gatys et al. 2017, §5).

Images are (1, 3, H, W) float32, RGB in [0, 1]; a luminance is (1, 1, H, W).
"""

from typing import Literal

import torch
from torch import Tensor

from pipeline.runtime.summation import total

ColourMatching = Literal["cholesky", "pca"]
"""How the factor of a covariance matrix Σ is chosen: L of Σ = L Lᵀ, or the symmetric root."""
LUMA = (0.299, 0.587, 0.114)
"""Y of YIQ, the colour space of the paper."""
VARIANCE = 1e-5
"""Added to each variance, so that a grey picture has a covariance matrix of full rank."""


def luminance(image: Tensor) -> Tensor:
    """Returns the luminance Y of an image."""
    red, green, blue = (weight * image[:, [i]] for i, weight in enumerate(LUMA))
    return red + green + blue


def to_grey(image: Tensor) -> Tensor:
    """Returns an image with its luminance in each channel."""
    return luminance(image).expand_as(image).contiguous()


def match_luminance(style_image: Tensor, content_image: Tensor) -> Tensor:
    """Returns the grey style image with the mean and deviation of the content's luminance.

    Values are clamped to [0, 1].
    """
    style, content = luminance(style_image).double(), luminance(content_image).double()
    style_mean, content_mean = _mean(style), _mean(content)
    style_variance, content_variance = (
        _mean((values - mean).square()) + VARIANCE
        for values, mean in ((style, style_mean), (content, content_mean))
    )
    matched = (content_variance / style_variance).sqrt() * (style - style_mean) + content_mean
    return matched.clamp(0, 1).to(style_image.dtype).expand_as(style_image).contiguous()


def with_chroma(image: Tensor, content_image: Tensor) -> Tensor:
    """Returns the image with its own luminance and the chroma, I and Q, of the content image.

    Equal I and Q are equal differences between R, G and B. The luminance moves to where all three
    are in [0, 1], which is always possible, since they are in the content image.
    """
    chroma = content_image - luminance(content_image)
    lowest, highest = -chroma.amin(1, keepdim=True), 1 - chroma.amax(1, keepdim=True)
    return luminance(image).clamp(lowest, highest) + chroma


def match_colours(style_image: Tensor, content_image: Tensor, how: ColourMatching) -> Tensor:
    """Returns the style image with the mean and covariance of the content's colours.

    Each pixel x becomes A x + b with A = L_C L_S⁻¹ for ``cholesky``, and Σ_C^½ Σ_S^−½ for ``pca``.
    Values are clamped to [0, 1].
    """
    root = torch.linalg.cholesky if how == "cholesky" else _symmetric_root
    style_mean, style_covariance = _colour_statistics(style_image)
    mean, covariance = _colour_statistics(content_image)
    mapping = root(covariance) @ torch.linalg.inv(root(style_covariance))
    pixels = style_image.double().flatten(2)[0]
    matched: Tensor = mapping @ (pixels - style_mean) + mean
    return matched.to(style_image.dtype).view_as(style_image).clamp(0, 1)


def _colour_statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean (3, 1) and the covariance (3, 3) of the colours, float64."""
    pixels = image.double().flatten(2)[0]
    mean = torch.stack([_mean(row) for row in pixels])[:, None]
    centred = pixels - mean
    covariance = torch.stack([torch.stack([_mean(a * b) for b in centred]) for a in centred])
    return mean, covariance + VARIANCE * torch.eye(3, dtype=torch.float64, device=image.device)


def _mean(values: Tensor) -> Tensor:
    return total(values) / values.numel()


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors * values.sqrt() @ vectors.T
    return root
