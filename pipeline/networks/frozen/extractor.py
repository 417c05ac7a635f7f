"""What the losses ask of a network that never learns, and its derivative, by hand.

Autograd would keep every activation until the backward pass. Where the weights are fixed, two
things of a layer are needed there: which activations ReLU let through, and the activations
themselves where their Gram matrix was taken. All else is freed as soon as the next layer has been
computed from it. Of the first layer, whose maps are the largest and the cheapest, nothing is kept:
it is computed again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.networks.frozen.convolutions import (
    Convolution,
    SplitInput,
    first_convolution,
    frozen_convolution,
)
from pipeline.networks.frozen.operations import (
    add_gram_gradient,
    gram_matrices,
    kept_for_relu,
    pooled,
    pooled_back,
    pooled_back_through_relu,
    through_relu,
)
from pipeline.networks.layers import LAYERS, check_layers
from pipeline.networks.vgg import check_size, layers_of
from pipeline.runtime.precision import Precision


class FrozenFeatures(nn.Module):
    """The same network as ``vgg.Features``, for losses alone: cheaper in time and in memory.

    Args:
        weights: as ``vgg.Features`` takes them, taps included.
        pooling: ``avg`` or ``max``.
        precision: of the convolutions. ``float32``; ``tf32``: on a GPU 10 bits of mantissa inside;
            ``bf16``: activations of 8 bits. In all of them Gram matrices are float32 (by a CPU of
            bfloat16 to two millionths), and so is the first layer: to round its input would be to
            round away the small steps near a minimum.
        device: where it computes, and what its convolutions are chosen for.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        pooling: str,
        precision: Precision = "float32",
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        weights = {name: tensor.to(device) for name, tensor in weights.items()}
        self.pooling, self.precision = pooling, precision
        self.layers = layers_of(weights)
        self._keep("mean", weights["mean"].view(1, 3, 1, 1))
        self._keep("std", weights["std"].view(1, 3, 1, 1))
        self.dtype = torch.bfloat16 if precision == "bf16" else weights["mean"].dtype
        self.convolutions = nn.ModuleDict()
        for name in self.layers:
            kernels, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            chosen = first_convolution if name == self.layers[0] else frozen_convolution
            self.convolutions[name] = chosen(kernels, bias, precision)
            if f"{name}.tap" in weights:
                self._keep(f"{name}_tap", weights[f"{name}.tap"])

    def _keep(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor, persistent=False)

    def forward(
        self, image: Tensor, content_layers: Collection[str], style_layers: Collection[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the features of content layers and the Gram matrices of style layers.

        Both can be differentiated with respect to the image, once.

        Args:
            image: (B, 3, H, W) float32, RGB, 0 black and 1 white (values outside are allowed).
            content_layers, style_layers: names from ``self.layers``.

        Returns:
            {layer: (B, C, H', W') float32} and {layer: (B, C, C) float32}.

        Raises:
            UserError: a layer that the network does not have, or an image smaller than one
                position of the deepest layer.
        """
        contents, styles = list(content_layers), list(style_layers)
        check_layers([*contents, *styles], self.layers)
        if not contents and not styles:
            return {}, {}
        check_size(image, [*contents, *styles])
        found = _Statistics.apply(image, self, contents, styles)
        features = dict(zip(contents, found, strict=False))
        grams = dict(zip(styles, found[len(contents) :], strict=True))
        return (
            {name: self._tapped(name, maps) for name, maps in features.items()},
            {name: self._tapped_grams(name, each) for name, each in grams.items()},
        )

    def _tapped(self, name: str, features: Tensor) -> Tensor:
        tap = getattr(self, f"{name}_tap", None)
        if tap is None:
            return features
        # Not as a convolution, which a GPU might round to TF32.
        product: Tensor = tap @ features.flatten(start_dim=2)
        return product.view(len(features), -1, *features.shape[2:])

    def _tapped_grams(self, name: str, grams: Tensor) -> Tensor:
        """Returns the Gram matrices of the tapped layer, T G Tᵀ: its maps are never computed."""
        tap = getattr(self, f"{name}_tap", None)
        return grams if tap is None else tap @ grams @ tap.T

    def normalised(self, image: Tensor) -> Tensor:
        """Returns what goes into the first layer."""
        x = (image - self.get_buffer("mean")) / self.get_buffer("std")
        x = x.contiguous(memory_format=torch.channels_last)
        first = self.convolution(self.layers[0])
        return first.split(x) if isinstance(first, SplitInput) else x

    def down_to(self, wanted: Collection[str]) -> Iterator[tuple[str, bool]]:
        """Yields each layer's name and whether a pooling comes before it, to the deepest wanted."""
        deepest = max(map(self.layers.index, wanted))
        block = 1
        for name in self.layers[: deepest + 1]:
            yield name, LAYERS[name].block != block
            block = LAYERS[name].block

    def convolution(self, name: str) -> Convolution:
        """Returns a layer, which can be asked for its derivative too."""
        found = self.convolutions[name]
        assert isinstance(found, Convolution)
        return found


class _Statistics(torch.autograd.Function):
    """The network as one operation: an image in, features and Gram matrices out."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, network: FrozenFeatures, contents: list[str], styles: list[str]
    ) -> tuple[Tensor, ...]:
        ctx.network, ctx.contents, ctx.styles = network, contents, styles
        ctx.kept, ctx.pooled = {}, {}
        features, grams = {}, {}
        ctx.input = x = network.normalised(image)
        for name, after_pooling in network.down_to({*contents, *styles}):
            if after_pooling:
                x, ctx.pooled[name] = pooled(x, network.pooling)
            x = network.convolution(name)(x)
            if name in contents:
                features[name] = x.to(image.dtype, copy=True)
            if name in styles:
                grams[name] = gram_matrices(x)
            ctx.kept[name] = None if name == network.layers[0] else kept_for_relu(x, name in styles)
        return (*(features[name] for name in contents), *(grams[name] for name in styles))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        network: FrozenFeatures = ctx.network
        of_features = dict(zip(ctx.contents, gradients, strict=False))
        of_grams = dict(zip(ctx.styles, gradients[len(ctx.contents) :], strict=True))
        gradient: Tensor | None = None
        pooling: tuple[torch.Size, Tensor | None] | None = None
        while ctx.kept:
            name, maps = ctx.kept.popitem()
            if pooling and (name in of_features or name in of_grams):
                assert gradient is not None
                gradient, pooling = pooled_back(gradient, *pooling), None
            if maps is None:
                maps = network.convolution(name)(ctx.input)
            if name in of_features:
                added = of_features[name].to(
                    network.dtype, copy=True, memory_format=torch.channels_last
                )
                gradient = added if gradient is None else gradient.add_(added)
            if name in of_grams:
                gradient = add_gram_gradient(gradient, of_grams[name], maps)
            assert gradient is not None
            if pooling:
                gradient = pooled_back_through_relu(gradient, *pooling, maps)
            else:
                through_relu(gradient, maps, out=gradient)
            del maps
            gradient = network.convolution(name).backward(gradient)
            pooling = ctx.pooled.pop(name, None)
        assert gradient is not None
        std = network.get_buffer("std")
        return gradient / std, None, None, None
