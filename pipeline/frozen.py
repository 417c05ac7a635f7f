"""What the losses ask of a network that never learns, and its derivative, by hand.

Autograd would keep every activation until the backward pass. Where the weights are fixed, two
things of a layer are needed there: which activations ReLU let through, and the activations
themselves where their Gram matrix was taken. All else is freed as soon as the next layer has been
computed from it. Of the first layer, whose maps are the largest and the cheapest, nothing is kept:
it is computed again. The derivative of a 3×3 convolution of stride 1 is such a convolution again,
with the kernels turned round.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.layers import LAYERS, check_layers
from pipeline.precision import Precision, allowing
from pipeline.vgg import check_size, layers_of

POSITIONS = 2**14
"""Of how many positions at a time a Gram matrix is computed on a CPU: what its cache holds."""


class FrozenFeatures(nn.Module):
    """The same network as ``vgg.Features``, for losses alone: cheaper in time and in memory.

    Args:
        weights: as ``vgg.Features`` takes them, taps included.
        pooling: ``avg`` or ``max``.
        precision: of the convolutions. ``float32``; ``tf32``: on a GPU 10 bits of mantissa inside;
            ``bf16``: activations of 8 bits. Gram matrices are float32 in all of them.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], pooling: str, precision: Precision = "float32"
    ) -> None:
        super().__init__()
        self.pooling, self.precision = pooling, precision
        self.layers = layers_of(weights)
        self._keep("mean", weights["mean"].view(1, 3, 1, 1))
        self._keep("std", weights["std"].view(1, 3, 1, 1))
        self.dtype = torch.bfloat16 if precision == "bf16" else weights["mean"].dtype
        for name in self.layers:
            kernels = weights[f"{name}.weight"].to(self.dtype)
            turned = kernels.flip(2, 3).transpose(0, 1)
            self._keep(f"{name}_kernels", kernels.contiguous(memory_format=torch.channels_last))
            self._keep(f"{name}_turned", turned.contiguous(memory_format=torch.channels_last))
            self._keep(f"{name}_bias", weights[f"{name}.bias"].to(self.dtype))
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
            image: (1, 3, H, W) float32, RGB, 0 black and 1 white (values outside are allowed).
            content_layers, style_layers: names from ``self.layers``.

        Returns:
            {layer: (1, C, H', W') float32} and {layer: (C, C) float32}.

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
            {name: self._tapped_gram(name, gram) for name, gram in grams.items()},
        )

    def _tapped(self, name: str, features: Tensor) -> Tensor:
        tap = getattr(self, f"{name}_tap", None)
        if tap is None:
            return features
        # Not as a convolution, which a GPU might round to TF32.
        product: Tensor = tap @ features.flatten(start_dim=2)
        return product.view(1, -1, *features.shape[2:])

    def _tapped_gram(self, name: str, gram: Tensor) -> Tensor:
        """Returns the Gram matrix of the tapped layer, T G Tᵀ: its maps are never computed."""
        tap = getattr(self, f"{name}_tap", None)
        return gram if tap is None else tap @ gram @ tap.T

    def normalised(self, image: Tensor) -> Tensor:
        """Returns what goes into the first layer."""
        x = (image - self.get_buffer("mean")) / self.get_buffer("std")
        return x.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def down_to(self, wanted: Collection[str]) -> Iterator[tuple[str, bool]]:
        """Yields each layer's name and whether a pooling comes before it, to the deepest wanted."""
        deepest = max(map(self.layers.index, wanted))
        block = 1
        for name in self.layers[: deepest + 1]:
            yield name, LAYERS[name].block != block
            block = LAYERS[name].block

    def convolved(self, name: str, maps: Tensor) -> Tensor:
        """Returns a layer before ReLU."""
        kernels, bias = self.get_buffer(f"{name}_kernels"), self.get_buffer(f"{name}_bias")
        with allowing(self.precision):
            return functional.conv2d(maps, kernels, bias, padding=1)

    def convolved_back(self, name: str, gradient: Tensor) -> Tensor:
        """Returns the gradient of a layer's input, given that of its output before ReLU."""
        with allowing(self.precision):
            return functional.conv2d(gradient, self.get_buffer(f"{name}_turned"), padding=1)


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
                x, ctx.pooled[name] = _pooled(x, network.pooling)
            x = network.convolved(name, x).relu_()
            if name in contents:
                features[name] = x.to(image.dtype, copy=True)
            if name in styles:
                grams[name] = _gram(x)
            ctx.kept[name] = None if name == network.layers[0] else _kept(x, name in styles)
        return (*(features[name] for name in contents), *(grams[name] for name in styles))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        network: FrozenFeatures = ctx.network
        of_features = dict(zip(ctx.contents, gradients, strict=False))
        of_grams = dict(zip(ctx.styles, gradients[len(ctx.contents) :], strict=True))
        gradient: Tensor | None = None
        while ctx.kept:
            name, maps = ctx.kept.popitem()
            if maps is None:
                maps = network.convolved(name, ctx.input).relu_()
            if name in of_features:
                added = of_features[name].to(
                    network.dtype, copy=True, memory_format=torch.channels_last
                )
                gradient = added if gradient is None else gradient.add_(added)
            if name in of_grams:
                gradient = _add_gram_gradient(gradient, of_grams[name], maps)
            assert gradient is not None
            _through_relu(gradient, maps)
            del maps
            gradient = network.convolved_back(name, gradient)
            if name in ctx.pooled:
                gradient = _pooled_back(gradient, *ctx.pooled.pop(name))
        assert gradient is not None
        std = network.get_buffer("std")
        return gradient.to(std.dtype) / std, None, None, None


def _by_position(maps: Tensor) -> Tensor:
    """Returns (1, C, H', W') maps in channels-last memory as an (M, C) view."""
    return maps.permute(0, 2, 3, 1).flatten(end_dim=2)


def _gram(maps: Tensor) -> Tensor:
    """Returns ``losses.gram_matrix``, part by part: no copy of all maps in float32."""
    positions = _by_position(maps)
    dtype = torch.promote_types(maps.dtype, torch.float32)
    gram = positions.new_zeros((maps.shape[1], maps.shape[1]), dtype=dtype)
    count = POSITIONS if maps.device.type == "cpu" else len(positions)
    for begin in range(0, len(positions), count):
        part = positions[begin : begin + count].to(dtype)
        gram.addmm_(part.T, part)
    return gram / len(positions)


def _add_gram_gradient(gradient: Tensor | None, of_gram: Tensor, maps: Tensor) -> Tensor:
    """Returns the gradient of maps, plus what comes to them from their Gram matrix."""
    positions = _by_position(maps)
    symmetric = ((of_gram + of_gram.T) / len(positions)).to(maps.dtype)
    if gradient is None:
        added = positions @ symmetric
    else:
        added = _by_position(gradient).addmm_(positions, symmetric)
    _, channels, height, width = maps.shape
    return added.view(1, height, width, channels).permute(0, 3, 1, 2)


def _kept(maps: Tensor, for_gram: bool) -> Tensor:
    """Returns what a layer's derivative needs: without a Gram matrix only where it is above 0.

    Maps of bfloat16 are kept as they are: half as large, they cost less time than a mask of them.
    """
    return maps if for_gram or maps.dtype == torch.bfloat16 else maps.to(torch.bool)


def _through_relu(gradient: Tensor, maps: Tensor) -> None:
    """Makes the gradient of what ReLU let out that of what it was given.

    Args:
        gradient: overwritten.
        maps: what it let out, or where that is above 0.
    """
    if maps.dtype == torch.bool:
        gradient.mul_(maps.view(torch.uint8))
    else:
        torch.ops.aten.threshold_backward.grad_input(gradient, maps, 0, grad_input=gradient)


def _pooled(maps: Tensor, pooling: str) -> tuple[Tensor, tuple[torch.Size, Tensor | None]]:
    """Returns maps of half the size, and what ``_pooled_back`` wants to know."""
    if pooling == "avg":
        return functional.avg_pool2d(maps, 2), (maps.shape, None)
    pooled, where = functional.max_pool2d(maps, 2, return_indices=True)
    return pooled, (maps.shape, where)


def _pooled_back(gradient: Tensor, shape: torch.Size, where: Tensor | None) -> Tensor:
    """Returns the gradient of a pooling's input: spread over four, or given to the largest."""
    if where is None:
        spread = functional.interpolate(gradient / 4, scale_factor=2, mode="nearest")
        lacking = (0, shape[-1] - spread.shape[-1], 0, shape[-2] - spread.shape[-2])
        return functional.pad(spread, lacking) if any(lacking) else spread
    flat = gradient.new_zeros(shape).flatten(start_dim=2)
    given = flat.scatter_(2, where.flatten(start_dim=2), gradient.flatten(start_dim=2))
    return given.view(shape).contiguous(memory_format=torch.channels_last)
