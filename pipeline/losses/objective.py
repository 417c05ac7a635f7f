"""What the generated image is asked for: targets computed once, and the losses against them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.losses.functions import CONVENTIONS, out_of_range, total_variation
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.layers import LAYERS

TERMS = "total", "content", "style", "variation", "out_of_range"
"""Of ``Losses``, the weighted ones."""


class Losses(NamedTuple):
    """One evaluation of the objective, all scalars.

    ``total`` is the sum of ``content``, ``style``, ``variation`` and ``out_of_range``, which are
    weighted; ``content_layers`` and ``style_layers`` hold each layer's own loss, before any weight.
    """

    total: Tensor
    content: Tensor
    style: Tensor
    variation: Tensor
    out_of_range: Tensor
    content_layers: dict[str, Tensor]
    style_layers: dict[str, Tensor]


class Objective(nn.Module):
    """α·content + β·style (Gatys et al. 2016, eq. 7) as a function of an image.

    **Differs:** adds, if asked to, a smoothness prior and a price for what no picture can hold.

    Args:
        features: the network.
        content_image: (1, 3, H, W) float32, RGB in [0, 1].
        style_image: (1, 3, H*, W*) float32, RGB in [0, 1]; any size, since Gram matrices are
            divided by their number of positions.
        content_layers, style_layers: {layer: its weight w_l}; either may be empty.
        content_weight, style_weight: α and β.
        variation_weight: of the total variation.
        range_weight: of the mean squared distance from [0, 1].
        convention: a key of ``CONVENTIONS``.
    """

    def __init__(
        self,
        features: FrozenFeatures,
        content_image: Tensor,
        style_image: Tensor,
        *,
        content_layers: Mapping[str, float],
        style_layers: Mapping[str, float],
        content_weight: float,
        style_weight: float,
        variation_weight: float = 0.0,
        range_weight: float = 0.0,
        convention: str = "mean",
    ) -> None:
        super().__init__()
        self.features = features
        self.content_weights, self.style_weights = dict(content_layers), dict(style_layers)
        self.content_weight, self.style_weight = content_weight, style_weight
        self.variation_weight, self.range_weight = variation_weight, range_weight
        self.content_loss, self.style_loss = CONVENTIONS[convention]
        with torch.no_grad():
            contents, _ = features(content_image, content_layers, [])
            _, grams = features(style_image, [], style_layers)
        for name, target in contents.items():
            self.register_buffer(f"content_{name}", target, persistent=False)
        for name, target in grams.items():
            self.register_buffer(f"style_{name}", target, persistent=False)

    def forward(self, image: Tensor) -> Losses:
        """Returns the losses of a (1, 3, H, W) float32 image of the content image's size."""
        contents, grams = self.features(image, self.content_weights, self.style_weights)
        content_layers = {
            name: self.content_loss(
                contents[name], getattr(self, f"content_{name}"), LAYERS[name].channels_out
            )
            for name in self.content_weights
        }
        style_layers = {
            name: self.style_loss(
                grams[name], getattr(self, f"style_{name}"), LAYERS[name].channels_out
            )
            for name in self.style_weights
        }
        content = self.content_weight * _weighted(content_layers, self.content_weights, image)
        style = self.style_weight * _weighted(style_layers, self.style_weights, image)
        variation, beyond = image.new_zeros(()), image.new_zeros(())
        if self.variation_weight:
            variation = self.variation_weight * total_variation(image)
        if self.range_weight:
            beyond = self.range_weight * out_of_range(image)
        total = content + style + variation + beyond
        return Losses(total, content, style, variation, beyond, content_layers, style_layers)

    @property
    def names(self) -> list[str]:
        """The keys of ``named``, in its order."""
        layers = [f"content_{name}" for name in self.content_weights]
        layers += [f"style_{name}" for name in self.style_weights]
        weighted = [f"{name}_weighted" for name in layers]
        return [*TERMS, *layers, *weighted]

    def named(self, losses: Losses) -> dict[str, Tensor]:
        """Returns one evaluation flat, by the names a record uses; every value a scalar.

        ``TERMS`` are weighted. ``content_conv4_2``, ``style_conv1_1`` … are a layer's own loss, and
        with ``_weighted`` its part of the total.
        """
        terms = [getattr(losses, term) for term in TERMS]
        content, style = losses.content_layers, losses.style_layers
        own = [*content.values(), *style.values()]
        factors = [self.content_weight * self.content_weights[name] for name in content]
        factors += [self.style_weight * self.style_weights[name] for name in style]
        weighted = [factor * loss for factor, loss in zip(factors, own, strict=True)]
        return dict(zip(self.names, [*terms, *own, *weighted], strict=True))


def _weighted(losses: Mapping[str, Tensor], weights: Mapping[str, float], image: Tensor) -> Tensor:
    return sum((weights[name] * loss for name, loss in losses.items()), image.new_zeros(()))
