"""Distance between the textures of two pictures, by statistics of their wavelet coefficients."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from pipeline.measures.structure import luminance

SCALES, ORIENTATIONS, CORRELATION_WIDTH = 4, 4, 7
"""Those of the paper."""

Groups = dict[str, Tensor]
"""{kind of statistic: its values}."""


def texture_statistics(image: Tensor) -> Groups:
    """Returns the statistics of the luminance of a (1, 3, H, W) image, RGB in [0, 1].

    H and W are multiples of 2**SCALES. The statistics are those of Portilla & Simoncelli 2000, "A
    parametric texture model based on joint statistics of complex wavelet coefficients". Those that
    do not exist, as of a picture of one colour, are 0.
    """
    model = _model(tuple(image.shape[-2:]))
    grey = torch.from_numpy(luminance(image))[None, None]
    values = model.convert_to_dict(model(grey))
    # A correlation that stands in the model for another one by symmetry is NaN there too.
    return {name: value.flatten().nan_to_num(0, 0, 0) for name, value in values.items()}


def texture_distance(statistics: Groups, other: Groups) -> float:
    """Returns the mean over the kinds of statistics of ‖a − b‖ / (‖a‖ + ‖b‖), from 0 to 1."""
    distances = []
    for name, value in statistics.items():
        size = value.norm() + other[name].norm()
        distances.append(float((value - other[name]).norm() / size.clamp_min(1e-30)))
    return sum(distances) / len(distances)


@cache
def _model(size: tuple[int, int]) -> Any:
    from plenoptic.models import PortillaSimoncelli  # slow to import

    return PortillaSimoncelli(size, SCALES, ORIENTATIONS, CORRELATION_WIDTH).double()
