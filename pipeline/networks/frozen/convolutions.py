"""3×3 convolutions of stride 1 with fixed kernels: forward with ReLU, and the input's gradient.

Feature maps are (B, C, H', W') in channels-last memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.networks.frozen import winograd
from pipeline.runtime.precision import Precision, allowing, has_cudnn

STRIP_SIZE = 2**14
"""How many positions ``MixedPrecision`` converts at a time, so that they fit into a CPU's cache."""
WINOGRAD_CHANNELS = 100
"""Number of channels, in and out, from which Winograd's algorithm is faster on a CPU."""


def frozen_convolution(
    kernels: Tensor, bias: Tensor, precision: Precision, is_first: bool = False
) -> Convolution:
    """Returns the fastest convolution for a device, a precision and a number of channels.

    The kernels are (out, in, 3, 3), on the device that computes the convolution; the bias is
    (out,). A network's first convolution does not round its input, the image.
    """
    exact = precision == "float32"
    if exact and kernels.device.type == "cpu" and min(kernels.shape[:2]) >= WINOGRAD_CHANNELS:
        return Winograd(kernels, bias)
    if exact or not is_first:
        return Direct(kernels, bias, precision)
    kind = SplitInput if has_cudnn(kernels) else MixedPrecision
    return kind(kernels, bias, precision)


class Convolution(nn.Module):
    """Holds buffers that move with the module and are not saved in checkpoints.

    ``forward`` returns a layer's maps after ReLU from those before the layer.
    """

    kernels: Tensor
    flipped: Tensor
    bias: Tensor

    def __init__(self, **buffers: Tensor) -> None:
        super().__init__()
        for name, tensor in buffers.items():
            if tensor.dim() == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            self.register_buffer(name, tensor, persistent=False)

    def backward(self, gradient: Tensor) -> Tensor:
        """Returns the gradient of the layer's input, from that of its output before ReLU."""
        raise NotImplementedError


class Direct(Convolution):
    """torch's own convolution; ``flipped`` kernels are made from the others if not given."""

    def __init__(
        self, kernels: Tensor, bias: Tensor, precision: Precision, flipped: Tensor | None = None
    ) -> None:
        dtype = _dtype(kernels, precision)
        flipped = _flipped(kernels) if flipped is None else flipped
        super().__init__(kernels=kernels.to(dtype), flipped=flipped.to(dtype), bias=bias.to(dtype))
        self.precision = precision

    def forward(self, maps: Tensor) -> Tensor:
        with allowing(self.precision):
            if has_cudnn(maps):  # it applies ReLU in the same pass
                one = (1, 1)  # stride, padding and dilation
                return torch.cudnn_convolution_relu(maps, self.kernels, self.bias, one, one, one, 1)
            return functional.conv2d(maps, self.kernels, self.bias, padding=1).relu_()

    def backward(self, gradient: Tensor) -> Tensor:
        with allowing(self.precision):
            return functional.conv2d(gradient, self.flipped, padding=1)


class Winograd(Convolution):
    """Winograd's algorithm, which needs a quarter of the multiplications."""

    def __init__(self, kernels: Tensor, bias: Tensor) -> None:
        super().__init__(kernels=winograd.transform_kernels(kernels), bias=bias)

    def forward(self, maps: Tensor) -> Tensor:
        return winograd.convolve(maps, self.kernels, self.bias).relu_()

    def backward(self, gradient: Tensor) -> Tensor:
        return winograd.convolve(gradient, self.kernels, transposed=True)


class SplitInput(Direct):
    """Convolves a float32 image on a GPU that rounds the factors of a product, without rounding it.

    The image is exactly the sum of three bfloat16 images, the kernels are to 2⁻¹⁷ the sum of two
    in bfloat16, and products are added up in float32. The five products that matter are one
    convolution of as many images. The gradient is rounded as in any other layer.
    """

    CHANNELS_OUT = 8  # of ``backward``, for alignment; all but three are 0

    def __init__(self, kernels: Tensor, bias: Tensor, precision: Precision) -> None:
        coarse, fine = _split(kernels, 2)
        stacked = torch.cat([coarse, coarse, coarse, fine, fine, torch.zeros_like(fine[:, :1])], 1)
        flipped = _flipped(kernels)
        flipped = functional.pad(flipped, (0, 0, 0, 0, 0, 0, 0, self.CHANNELS_OUT - len(flipped)))
        super().__init__(stacked.to(kernels.dtype), bias, precision, flipped)

    def split(self, image: Tensor) -> Tensor:
        """Returns the input of ``forward`` for (B, 3, H, W) images: (B, 16, H, W)."""
        high, middle, low = _split(image, 3)
        padding = torch.zeros_like(high[:, :1])
        return torch.cat([high, middle, low, high, middle, padding], 1).to(self.kernels.dtype)

    def backward(self, gradient: Tensor) -> Tensor:
        return super().backward(gradient)[:, :3].float()


class MixedPrecision(Convolution):
    """Computes in the precision of its kernels, and returns the maps in that of the next layers.

    If the two differ, a CPU converts the maps strip by strip, and never holds a copy of all.
    """

    def __init__(self, kernels: Tensor, bias: Tensor, precision: Precision) -> None:
        super().__init__(kernels=kernels, flipped=_flipped(kernels), bias=bias)
        self.dtype = _dtype(kernels, precision)

    def forward(self, maps: Tensor) -> Tensor:
        return self._convolve(maps, self.kernels, self.bias, self.dtype).relu_()

    def backward(self, gradient: Tensor) -> Tensor:
        return self._convolve(gradient, self.flipped, None, self.flipped.dtype)

    @staticmethod
    @allowing("float32")
    def _convolve(maps: Tensor, kernels: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        if maps.dtype == dtype or maps.device.type != "cpu":
            return functional.conv2d(maps.to(kernels.dtype), kernels, bias, padding=1).to(dtype)
        count, _, height, width = maps.shape
        rows = max(1, STRIP_SIZE // width)
        result = torch.empty(
            (count, len(kernels), height, width), dtype=dtype, memory_format=torch.channels_last
        )
        for begin in range(0, height, rows):
            end = min(begin + rows, height)
            above, below = min(begin, 1), min(height - end, 1)
            strip = maps[:, :, begin - above : end + below].to(kernels.dtype)
            padding = (0, 0, 1 - above, 1 - below)
            strip = functional.pad(strip, padding).contiguous(memory_format=torch.channels_last)
            result[:, :, begin:end] = functional.conv2d(strip, kernels, bias, padding=(0, 1))
        return result


def _dtype(kernels: Tensor, precision: Precision) -> torch.dtype:
    """Returns the type of the maps that a network with these kernels computes in a precision."""
    return torch.bfloat16 if precision == "bf16" else kernels.dtype


def _split(values: Tensor, count: int) -> list[Tensor]:
    """Returns bfloat16 tensors whose sum is the float32 ``values``, to 8 · ``count`` bits."""
    parts: list[Tensor] = []
    for _ in range(count):
        parts.append(values.bfloat16())
        values = values - parts[-1]
    return parts


def _flipped(kernels: Tensor) -> Tensor:
    """Returns the (in, out, 3, 3) kernels of the derivative."""
    return kernels.flip(2, 3).transpose(0, 1)
