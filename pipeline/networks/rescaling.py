"""Rescales VGG-19 so that every filter has mean activation 1 (Gatys et al. 2016, §2)."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pipeline.networks.layers import LAYERS
from pipeline.networks.vgg import Features, layers_of


def rescaling_means(
    features: Features, images: Iterable[Tensor], dead_below: float = 0.1
) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """Returns what to divide each filter by, and which filters are dead.

    The divisor of a filter is its mean activation over images and positions (Gatys et al. 2016,
    §2). **Differs:** a filter whose mean is below ``dead_below`` times its layer's median mean is
    dead. Divided by a mean near 0 it would dominate the loss at the few positions where it is
    active; divided by its layer's median, it stays as weak as the network made it.

    ``features`` are those before rescaling, with the pooling of later runs; a small network must be
    ``predicting``. There is at least one image, (1, 3, H, W) float32, RGB in [0, 1]. The result is
    {layer: (N,) float32, > 0} and {layer: indices of its dead filters}, dead layers only.
    """
    means = {name: torch.zeros(LAYERS[name].channels_out) for name in features.layers}
    positions = dict.fromkeys(features.layers, 0)
    with torch.no_grad():
        for image in images:
            for name, activations in features(image, features.layers).items():
                means[name] += activations.sum(dim=(0, 2, 3)).cpu()
                positions[name] += activations[0, 0].numel()
    dead: dict[str, list[int]] = {}
    for name, total in means.items():
        mean = total / positions[name]
        median = mean.median().clamp_min(torch.finfo(torch.float32).tiny)
        is_dead = mean < dead_below * median
        means[name] = torch.where(is_dead, median, mean)
        if is_dead.any():
            dead[name] = is_dead.nonzero().flatten().tolist()
    return means, dead


def rescale(weights: Mapping[str, Tensor], means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of the same network with rescaled filters.

    Weight and bias of filter i are divided by its mean a_i, from ``rescaling_means``, and the next
    layer's input channel i is multiplied by a_i. ReLU and both poolings are positively homogeneous,
    so every layer's activations are divided by a, and what the network computes is unchanged.
    """
    scaled = dict(weights)
    before = torch.ones(3)
    for name in layers_of(weights):
        mean = means[name]
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        scaled[f"{name}.weight"] = weight * before.view(1, -1, 1, 1) / mean.view(-1, 1, 1, 1)
        scaled[f"{name}.bias"] = bias / mean
        before = mean
    return scaled
