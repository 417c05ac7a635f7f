"""The small network that stands in for VGG-19.

It has VGG-19's shape with fewer layers and channels, and for each layer a head P of shape (N, C): P
times its C channels s predicts VGG-19's N activations, before any rescaling. A loss needs only sums
of squares of the predictions, and C channels have the same sums:

    ‖P D Pᵀ‖² = ‖M^½ D M^½‖²   and   ‖P d‖² = ‖M^½ d‖²,   with M = PᵀP,

where D is a difference of Gram matrices and d one of activations. The *tap* M^½ s therefore has
VGG-19's losses in VGG-19's units, as far as the prediction goes, at the cost of C channels.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.networks.vgg import layers_of


def predicting(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the network whose features are its predictions of VGG-19's activations.

    The weights are ``conv1_1.weight``, ``.bias`` and ``.head`` (N, C) …, ``mean`` and ``std``. In
    the result, which ``vgg.Features`` takes, the heads are the taps.
    """
    return {name.replace(".head", ".tap"): tensor for name, tensor in weights.items()}


def tapped(
    weights: Mapping[str, Tensor], means: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Returns the network whose features have VGG-19's losses, as ``vgg.Features`` takes it.

    With ``means``, from ``rescaling_means`` of the predictions, they are those of VGG-19 with its
    filters divided by their means.
    """
    network = {name: tensor for name, tensor in weights.items() if not name.endswith(".head")}
    for name in layers_of(weights):
        head = weights[f"{name}.head"]
        scaled = head if means is None else head / means[name].to(head).view(-1, 1)
        network[f"{name}.tap"] = square_root(scaled.T @ scaled)
    return network


def square_root(matrix: Tensor) -> Tensor:
    """Returns the symmetric square root of a positive semi-definite (C, C) matrix, float32."""
    values, vectors = torch.linalg.eigh(matrix.double())
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root.float()
