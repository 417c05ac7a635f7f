"""VGG-19 without its fully connected layers: the features it computes.

The network is a chain of convolution and ReLU, with a pooling between blocks. A small network has
VGG-19's shape with fewer layers and filters, and for each layer a *tap*: a matrix that its features
are multiplied by, so that they stand for VGG-19's (``pipeline.networks.small_vgg``). Nothing here
reads a file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import UserError
from pipeline.networks.layers import LAYERS, check_layers

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Features(nn.Module):
    """The features of an image by layer; differentiated by autograd.

    The weights are non-persistent buffers: they follow the module to its device, and stay out of
    ``parameters()`` and of every checkpoint.

    Args:
        weights: ``conv1_1.weight`` (out, in, 3, 3) and ``conv1_1.bias`` (out,) … float32, and
            ``mean`` and ``std`` (3,): what to subtract from and divide RGB in [0, 1] by. A small
            network has ``conv1_1.tap`` (C, out) too.
        pooling: ``avg`` (the paper's) or ``max`` (the original network's).
    """

    def __init__(self, weights: Mapping[str, Tensor], pooling: str) -> None:
        super().__init__()
        self.pooling = pooling
        self.layers = layers_of(weights)
        self.names = tuple(weights)
        for name, tensor in weights.items():
            self.register_buffer(name.replace(".", "_"), tensor, persistent=False)

    def forward(self, image: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """Returns the activations of ``layers``, computed no deeper than the deepest of them.

        Args:
            image: (1, 3, H, W) float32, RGB, 0 black and 1 white (values outside are allowed).
            layers: names from ``self.layers``, in any order.

        Returns:
            {layer: (1, C, H', W') float32}, with H' = ⌊H / 2^(block − 1)⌋. Without taps C is the
            layer's number of filters N, and every value is ≥ 0.

        Raises:
            UserError: a layer that the network does not have, or an image smaller than one
                position of the deepest layer.
        """
        wanted = set(layers)
        check_layers(wanted, self.layers)
        if not wanted:
            return {}
        deepest = check_size(image, wanted)
        weights = {name: self.get_buffer(name.replace(".", "_")) for name in self.names}
        features: dict[str, Tensor] = {}
        for name, activations in activations_in_turn(weights, image, self.pooling):
            if name in wanted:
                tap = weights.get(f"{name}.tap")
                features[name] = activations if tap is None else linear_map(tap, activations)
            if name == deepest:
                break
        return features


def layers_of(weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Returns the names of the layers that a network's weights have, first to last."""
    return tuple(name for name in LAYERS if f"{name}.weight" in weights)


def down_to(weights: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """Returns a network without the layers below the deepest one that is wanted.

    Args:
        weights: as ``Features`` takes them.
        wanted: names of layers; if there are none, the network is returned whole.

    Raises:
        UserError: a layer that the network does not have.
    """
    layers = layers_of(weights)
    check_layers(wanted, layers)
    deepest = max(map(layers.index, wanted), default=len(layers))
    below = set(layers[deepest + 1 :])
    return {name: tensor for name, tensor in weights.items() if name.split(".")[0] not in below}


def activations_in_turn(
    weights: Mapping[str, Tensor], image: Tensor, pooling: str
) -> Iterator[tuple[str, Tensor]]:
    """Yields each layer's name and (B, out, H', W') activations, each computed when asked for.

    Args:
        weights: as ``Features`` takes them.
        image: (B, 3, H, W) float32, RGB, 0 black and 1 white.
        pooling: ``avg`` or ``max``.
    """
    pool = getattr(functional, f"{pooling}_pool2d")
    x = (image - weights["mean"].view(1, 3, 1, 1)) / weights["std"].view(1, 3, 1, 1)
    block = 1
    for name in layers_of(weights):
        if LAYERS[name].block != block:
            x, block = pool(x, 2), LAYERS[name].block
        convolved = functional.conv2d(
            x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1
        )
        x = functional.relu(convolved)
        yield name, x


def linear_map(matrix: Tensor, activations: Tensor) -> Tensor:
    """Returns a (C, N) matrix times the (B, N, H', W') activations at every position."""
    return functional.conv2d(activations, matrix[:, :, None, None])


def check_size(image: Tensor, layers: Iterable[str]) -> str:
    """Returns the deepest of some layers.

    Raises:
        UserError: the image is smaller than one position of that layer.
    """
    deepest = max((LAYERS[name] for name in layers), key=lambda layer: layer.number)
    least = 2 ** (deepest.block - 1)
    height, width = image.shape[-2:]
    if min(height, width) < least:
        raise UserError(
            f"image is {height}x{width} pixels; {deepest.name} needs at least {least}x{least}. "
            "Use a larger picture or size, or shallower layers"
        )
    return deepest.name
