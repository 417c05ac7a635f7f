"""Distance between the colours of two pictures, by histograms that ignore where a colour is."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

BINS, BOUND, WIDTH = 64, 3.0, 0.02
"""Bins of u and v, their range from −BOUND to BOUND, and the width of the kernel."""
EDGE = 150
"""Pixels of both edges at which the colours are counted."""
EPSILON = 1e-6


def colour_histogram(image: Tensor) -> Tensor:
    """Returns the RGB-uv histogram of a (1, 3, H, W) image, RGB in [0, 1]: (3, BINS, BINS), sum 1.

    For each channel, u and v are the logarithms of its ratios to the other two. A pixel counts by
    its brightness, in all bins, by the inverse quadratic kernel 1 / (1 + (distance / WIDTH)²)
    (Afifi, Brubaker & Brown 2021, "HistoGAN", §3.1).
    """
    small = interpolate(image.double(), (EDGE, EDGE), mode="bilinear", align_corners=False)
    red, green, blue = small.clamp(0, 1).flatten(2)[0]
    brightness = (red.square() + green.square() + blue.square() + EPSILON).sqrt()
    logs = [(channel + EPSILON).log() for channel in (red, green, blue)]
    centres = torch.linspace(-BOUND, BOUND, BINS, dtype=torch.float64)

    def shares(differences: Tensor) -> Tensor:
        return 1 / (1 + ((differences[:, None] - centres) / WIDTH).square())

    planes = []
    for channel, (first, second) in enumerate(((1, 2), (0, 2), (0, 1))):
        u, v = logs[channel] - logs[first], logs[channel] - logs[second]
        planes.append((brightness[:, None] * shares(u)).T @ shares(v))
    histogram = torch.stack(planes)
    return histogram / (histogram.sum() + EPSILON)


def colour_distance(histogram: Tensor, other: Tensor) -> float:
    """Returns the Hellinger distance of two histograms, from 0, the same, to 1."""
    return float((histogram.sqrt() - other.sqrt()).norm() / 2**0.5)
