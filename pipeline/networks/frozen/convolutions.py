"""3×3 convolutions of stride 1 with fixed kernels: forward with ReLU, and the input's gradient.

Feature maps are (B, C, H', W') in channels-last memory. ``forward`` returns a layer's maps after
ReLU from those before it. ``backward`` returns the gradient of the maps before it from that of the
layer's output before ReLU: a convolution with the transposed, flipped kernels.
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


def first_convolution(kernels: Tensor, bias: Tensor, precision: Precision) -> Convolution:
    """Returns the fastest convolution that does not round the image; arguments as below."""
    if not has_cudnn(kernels):
        dtype = torch.bfloat16 if precision == "bf16" else kernels.dtype
        return MixedPrecision(kernels, bias, dtype)
    if precision == "float32":
        return Direct(kernels, bias, precision)
    return SplitInput(kernels, bias, precision)


def frozen_convolution(kernels: Tensor, bias: Tensor, precision: Precision) -> Convolution:
    """Returns the fastest convolution for a device, a precision and a number of channels.

    Args:
        kernels: (out, in, 3, 3), on the device that computes the convolution.
        bias: (out,).
        precision: in which it is computed.
    """
    exact = precision == "float32" and kernels.device.type == "cpu"
    if exact and min(kernels.shape[:2]) >= WINOGRAD_CHANNELS:
        return Winograd(kernels, bias)
    return Direct(kernels, bias, precision)


class Direct(nn.Module):
    """torch's own convolution."""

    def __init__(self, kernels: Tensor, bias: Tensor, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        dtype = torch.bfloat16 if precision == "bf16" else kernels.dtype
        buffers = {"kernels": kernels, "flipped": _flipped(kernels), "bias": bias}
        _register(self, **{name: tensor.to(dtype) for name, tensor in buffers.items()})

    def forward(self, maps: Tensor) -> Tensor:
        with allowing(self.precision):
            return _convolve_relu(maps, self.get_buffer("kernels"), self.get_buffer("bias"))

    def backward(self, gradient: Tensor) -> Tensor:
        with allowing(self.precision):
            return functional.conv2d(gradient, self.get_buffer("flipped"), padding=1)


class Winograd(nn.Module):
    """Winograd's algorithm, which needs a quarter of the multiplications."""

    def __init__(self, kernels: Tensor, bias: Tensor) -> None:
        super().__init__()
        _register(self, kernels=winograd.transform_kernels(kernels), bias=bias)

    def forward(self, maps: Tensor) -> Tensor:
        kernels, bias = self.get_buffer("kernels"), self.get_buffer("bias")
        return winograd.convolve(maps, kernels, bias).relu_()

    def backward(self, gradient: Tensor) -> Tensor:
        return winograd.convolve(gradient, self.get_buffer("kernels"), transposed=True)


class SplitInput(nn.Module):
    """Convolves a float32 image on a GPU that rounds the factors of a product, without rounding it.

    The image is exactly the sum of three bfloat16 images, the kernels are to 2⁻¹⁷ the sum of two
    in bfloat16, and products are added up in float32. The five products that matter are one
    convolution of as many images. The gradient is rounded as in any other layer.
    """

    CHANNELS_OUT = 8
    """Of ``backward``, for alignment; all but three are 0."""

    def __init__(self, kernels: Tensor, bias: Tensor, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        self.dtype = torch.bfloat16 if precision == "bf16" else kernels.dtype
        coarse, fine = _split(kernels, 2)
        stacked = torch.cat([coarse, coarse, coarse, fine, fine, torch.zeros_like(fine[:, :1])], 1)
        flipped = _flipped(kernels)
        flipped = functional.pad(flipped, (0, 0, 0, 0, 0, 0, 0, self.CHANNELS_OUT - len(flipped)))
        buffers = {"kernels": stacked, "flipped": flipped, "bias": bias}
        _register(self, **{name: tensor.to(self.dtype) for name, tensor in buffers.items()})

    def split(self, image: Tensor) -> Tensor:
        """Returns the input of ``forward`` for (B, 3, H, W) images: (B, 16, H, W)."""
        high, middle, low = _split(image, 3)
        padding = torch.zeros_like(high[:, :1])
        return torch.cat([high, middle, low, high, middle, padding], 1).to(self.dtype)

    def forward(self, parts: Tensor) -> Tensor:
        with allowing(self.precision):
            return _convolve_relu(parts, self.get_buffer("kernels"), self.get_buffer("bias"))

    def backward(self, gradient: Tensor) -> Tensor:
        with allowing(self.precision):
            result = functional.conv2d(gradient, self.get_buffer("flipped"), padding=1)
        return result[:, :3].float()


class MixedPrecision(nn.Module):
    """Computes in the precision of its kernels, and returns the maps in that of the next layers.

    If the two differ, a CPU converts the maps strip by strip, and never holds a copy of all.

    Args:
        kernels, bias: as for ``frozen_convolution``.
        dtype: of the maps after this layer.
    """

    def __init__(self, kernels: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        _register(self, kernels=kernels, flipped=_flipped(kernels), bias=bias)

    def forward(self, maps: Tensor) -> Tensor:
        kernels = self.get_buffer("kernels")
        return self._convolve(maps, kernels, self.get_buffer("bias"), self.dtype).relu_()

    def backward(self, gradient: Tensor) -> Tensor:
        kernels = self.get_buffer("flipped")
        return self._convolve(gradient, kernels, None, kernels.dtype)

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


Convolution = Direct | Winograd | SplitInput | MixedPrecision


def _convolve_relu(maps: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """Returns a layer's maps after ReLU; cuDNN applies it in the same pass."""
    if has_cudnn(maps):
        one = (1, 1)  # stride, padding and dilation
        return torch.cudnn_convolution_relu(maps, kernels, bias, one, one, one, 1)
    return functional.conv2d(maps, kernels, bias, padding=1).relu_()


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


def _register(module: nn.Module, **tensors: Tensor) -> None:
    """Registers buffers that move with the module and are not saved in checkpoints."""
    for name, tensor in tensors.items():
        if tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        module.register_buffer(name, tensor, persistent=False)
