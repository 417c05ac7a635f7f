"""Distances of content and of style by one network, with fixed weights and layers.

They are relative: 0 for equal features, 1 where the difference is as large as the features compared
with. So they do not depend on the unit of a layer.
"""

import torch
from torch import Tensor

from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.small_vgg import tapped
from pipeline.networks.weight_files import EMBEDDED, load_small

CONTENT_LAYER = "conv4_2"
STYLE_LAYERS = ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1")
"""The paper's (Gatys et al. 2016, §3)."""
NEEDS = {"features": [CONTENT_LAYER], "gram_matrix": list(STYLE_LAYERS)}

Description = tuple[Tensor, dict[str, Tensor]]
"""The features of ``CONTENT_LAYER``, and {layer: Gram matrix} of ``STYLE_LAYERS``."""


def embedded_network() -> FrozenFeatures:
    """Returns the network that ships with this project, in float32 and not rescaled."""
    return FrozenFeatures(tapped(load_small(EMBEDDED)), "avg")


def describe(image: Tensor, network: FrozenFeatures) -> Description:
    """Returns what the distances compare of a (1, 3, H, W) image, RGB in [0, 1]."""
    with torch.no_grad():
        statistics = network(image, NEEDS)
    return statistics["features"][CONTENT_LAYER], statistics["gram_matrix"]


def content_distance(result: Description, content: Description) -> float:
    """Returns ‖F − P‖ / ‖P‖ of the features F of a result and P of the content image."""
    return _relative(result[0], content[0])


def style_distance(result: Description, style: Description) -> float:
    """Returns the mean over the layers of ‖G − A‖ / ‖A‖ of two pictures' Gram matrices."""
    distances = [_relative(result[1][layer], style[1][layer]) for layer in STYLE_LAYERS]
    return sum(distances) / len(distances)


def _relative(value: Tensor, reference: Tensor) -> float:
    norm = reference.double().norm()
    return float((value.double() - reference.double()).norm() / norm.clamp_min(1e-30))
