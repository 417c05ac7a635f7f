"""The small network during training: its convolutions and heads as parameters."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.networks.layers import ARCHITECTURES, LAYERS
from pipeline.networks.vgg import IMAGENET_MEAN, IMAGENET_STD, activations_in_turn

SMALL_LAYERS = ARCHITECTURES["vgg19-small"]


class Student(nn.Module):
    """A small VGG with a head for each layer, a linear map that predicts VGG-19's features.

    All weights are stored as matrices, because Muon takes no other shape. ``widths`` are the
    channels of the five blocks, and ``seed`` is that of the initial weights (He initialisation).
    ``deviations``, {layer: standard deviation of VGG-19's features}, are the units of the heads.
    """

    def __init__(self, widths: Sequence[int], deviations: Mapping[str, float], seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.deviations = dict(deviations)
        self.convolutions, self.biases = nn.ParameterDict(), nn.ParameterDict()
        self.heads = nn.ParameterDict()
        channels_in = 3
        for name in SMALL_LAYERS:
            width, filters = widths[LAYERS[name].block - 1], LAYERS[name].channels_out
            kernels = torch.randn(width, channels_in * 9, generator=generator)
            self.convolutions[name] = nn.Parameter(kernels * (2 / (9 * channels_in)) ** 0.5)
            self.biases[name] = nn.Parameter(torch.zeros(width))
            head = torch.randn(filters, width, generator=generator)
            self.heads[name] = nn.Parameter(head / (2 * width**0.5))
            channels_in = width
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD), persistent=False)

    def forward(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yields each layer's name and its (B, C, H', W') features, before the head."""
        channels_last = images.contiguous(memory_format=torch.channels_last)
        return activations_in_turn(self._convolutions(), channels_last, "avg")

    def weights(self) -> dict[str, Tensor]:
        """Returns the network as ``small_vgg`` takes it; the heads predict VGG-19's features."""
        heads = {f"{name}.head": head * self.deviations[name] for name, head in self.heads.items()}
        return {name: tensor.detach() for name, tensor in (self._convolutions() | heads).items()}

    def _convolutions(self) -> dict[str, Tensor]:
        weights = {"mean": self.get_buffer("mean"), "std": self.get_buffer("std")}
        for name, matrix in self.convolutions.items():
            weights[f"{name}.weight"] = matrix.view(matrix.shape[0], -1, 3, 3)
            weights[f"{name}.bias"] = self.biases[name]
        return weights
