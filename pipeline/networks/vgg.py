"""VGG-19 without its fully connected layers: the features it computes.

The network is a chain of convolution and ReLU, with a pooling between blocks. A small network also
has for each layer a *tap*: a matrix that its features are multiplied by, so that they stand for
VGG-19's (``pipeline.networks.small_vgg``).
"""

from collections.abc import Collection, Iterator, Mapping

from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import UserError
from pipeline.networks.layers import LAYERS, down_to_deepest

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

    def forward(self, image: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
        """Returns the activations of ``layers``, computed no deeper than the deepest of them.

        The image is (1, 3, H, W) float32, RGB, 0 black and 1 white (values outside are allowed).
        Activations are (1, C, H', W') float32, with H' = ⌊H / 2^(block − 1)⌋. Without taps C is the
        layer's number of filters N, and every value is ≥ 0.

        Raises:
            UserError: a layer that the network does not have, or an image smaller than one
                position of the deepest layer.
        """
        if not layers:
            return {}
        weights = {name: self.get_buffer(name.replace(".", "_")) for name in self.names}
        weights = down_to(weights, layers)
        check_size(image, layers)
        features: dict[str, Tensor] = {}
        for name, activations in activations_in_turn(weights, image, self.pooling):
            if name in layers:
                tap = weights.get(f"{name}.tap")
                features[name] = activations if tap is None else linear_map(tap, activations)
        return features


def layers_of(weights: Collection[str]) -> tuple[str, ...]:
    """Returns the layers of a network, first to last, from the names of its weights."""
    return tuple(name for name in LAYERS if f"{name}.weight" in weights)


def down_to(weights: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """Returns a network without the layers below the deepest one that is wanted.

    If none is wanted, the network is returned whole.

    Raises:
        UserError: a layer that the network does not have.
    """
    layers = layers_of(weights)
    below = set(layers) - set(down_to_deepest(layers, wanted or layers))
    return {name: tensor for name, tensor in weights.items() if name.split(".")[0] not in below}


def activations_in_turn(
    weights: Mapping[str, Tensor], image: Tensor, pooling: str
) -> Iterator[tuple[str, Tensor]]:
    """Yields each layer's name and (B, out, H', W') activations, each computed when asked for.

    The arguments are as for ``Features``, but there may be several images (B, 3, H, W).
    """
    pool = getattr(functional, f"{pooling}_pool2d")
    x = (image - weights["mean"].view(1, 3, 1, 1)) / weights["std"].view(1, 3, 1, 1)
    block = 1
    for name in layers_of(weights):
        if LAYERS[name].block != block:
            x, block = pool(x, 2), LAYERS[name].block
        kernels, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        x = functional.relu(functional.conv2d(x, kernels, bias, padding=1))
        yield name, x


def linear_map(matrix: Tensor, activations: Tensor) -> Tensor:
    """Returns a (C, N) matrix times the (B, N, H', W') activations at every position."""
    return functional.conv2d(activations, matrix[:, :, None, None])


def check_size(image: Tensor, layers: Collection[str]) -> None:
    """Raises ``UserError`` if an image is smaller than one position of the deepest layer."""
    deepest = max((LAYERS[name] for name in layers), key=lambda layer: layer.number)
    least = 2 ** (deepest.block - 1)
    height, width = image.shape[-2:]
    if min(height, width) < least:
        raise UserError(
            f"image is {height}x{width} pixels; {deepest.name} needs at least {least}x{least}. "
            "Use a larger picture or size, or shallower layers"
        )
