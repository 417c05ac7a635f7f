"""Spectrum loss: the Fourier spectrum of the style image (Gonthier et al. 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.losses.styles import shares, styles_of, weighted_sum
from pipeline.losses.term import WHOLE, LossTerm
from pipeline.runtime.summation import total
from pipeline.settings import Section, Weight

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from pipeline.losses.term import Collect
    from pipeline.networks.frozen.statistics import Statistics


class SpectrumLoss(LossTerm):
    """Mean squared distance to the nearest image with the spectrum of the style image.

    That is the set of images whose Fourier transform is the style's up to one phase per frequency,
    common to R, G and B (Gonthier et al. 2020; Liu, Gousseau & Xia 2016). It keeps what is periodic
    over distances that no layer sees. **Differs:** a mean over all values instead of half of a sum;
    a style image of another size is resized to the image's.
    """

    name, order, optional, weight_key = "spectrum", 90, True, "spectrum_weight"
    image_roles, images_per_style = ("style",), 8

    class Settings(Section):
        spectrum_weight: Weight = 0.0

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self.shares = shares(styles_of(settings))

    def set_targets(self, images: Mapping[str, Tensor], collect: Collect) -> None:
        size = images["content"].shape[-2:]
        self.targets = {role: _spectrum(_resized(images[role], size)) for role in self.shares}

    def sizes(self) -> dict[str, float]:
        """Returns the loss of a black image."""
        nothing = {role: target.abs().square() for role, target in self.targets.items()}
        losses = [share * float(nothing[role].mean()) for role, share in self.shares.items()]
        return {WHOLE: sum(losses)}

    def parts(self, image: Tensor, statistics: Statistics) -> dict[str, Tensor]:
        losses = (
            (share, total((image - _nearest(image, self.targets[role])).square()))
            for role, share in self.shares.items()
        )
        return {WHOLE: weighted_sum(losses) / image.numel()}


def _spectrum(image: Tensor) -> Tensor:
    """Returns the two-dimensional Fourier transform of each channel, of the same norm, complex."""
    import torch

    spectrum: Tensor = torch.fft.fft2(image, norm="ortho")
    return spectrum


def _nearest(image: Tensor, spectrum: Tensor) -> Tensor:
    """Returns the nearest image with a spectrum, (1, 3, H, W), which autograd takes as constant.

    The derivative of the distance to a set does not contain that of the nearest point.
    """
    import torch

    with torch.no_grad():
        own = _spectrum(image)
        real, imaginary = (
            values.sum(1, keepdim=True) for values in _times_conjugate(own, spectrum)
        )
        length = (real.square() + imaginary.square()).sqrt()
        cosine = torch.where(length == 0, 1, real / length)
        sine = torch.where(length == 0, 0, -imaginary / length)
        turned = torch.complex(*_times_conjugate(spectrum, torch.complex(cosine, sine)))
        nearest: Tensor = torch.fft.ifft2(turned, norm="ortho").real
    return nearest


def _times_conjugate(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the real and the imaginary part of a product of complex numbers.

    torch rounds its own complex product differently where the share of a thread ends.
    """
    return (
        left.real * right.real + left.imag * right.imag,
        left.imag * right.real - left.real * right.imag,
    )


def _resized(image: Tensor, size: Sequence[int]) -> Tensor:
    from torch.nn.functional import interpolate

    if image.shape[-2:] == size:
        return image
    return interpolate(image, size=tuple(size), mode="bilinear", antialias=True)
