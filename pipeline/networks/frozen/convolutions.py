"""A 3×3 convolution of stride 1 whose kernels never change: forward, and back to its input.

Maps are (B, C, H', W') in channels-last memory. ``forward`` gives a layer's maps after ReLU from
those before it, and ``back`` the gradient of these from that of the layer's before ReLU: its
derivative is such a convolution again, with the kernels turned round.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.networks.frozen import winograd
from pipeline.runtime.precision import Precision, allowing, has_cudnn

POSITIONS = 2**14
"""How many positions ``InStrips`` goes through at a time on a CPU: what its cache holds."""
LEAST_CHANNELS = 100
"""From as many on, in and out, Winograd's algorithm is the faster one on a CPU."""


def first_convolution(kernels: Tensor, bias: Tensor, precision: Precision) -> Convolution:
    """Returns the quickest one that does not round the image; arguments as below."""
    if not has_cudnn(kernels):
        dtype = torch.bfloat16 if precision == "bf16" else kernels.dtype
        return InStrips(kernels, bias, dtype)
    if precision == "float32":
        return Direct(kernels, bias, precision)
    return InParts(kernels, bias, precision)


def frozen_convolution(kernels: Tensor, bias: Tensor, precision: Precision) -> Convolution:
    """Returns the quickest one.

    Args:
        kernels: (out, in, 3, 3), on the device that computes it.
        bias: (out,).
        precision: what it is computed in.
    """
    exact = precision == "float32" and kernels.device.type == "cpu"
    if exact and min(kernels.shape[:2]) >= LEAST_CHANNELS:
        return Winograd(kernels, bias)
    return Direct(kernels, bias, precision)


class Direct(nn.Module):
    """As torch computes it."""

    def __init__(self, kernels: Tensor, bias: Tensor, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        dtype = torch.bfloat16 if precision == "bf16" else kernels.dtype
        _keep(
            self, kernels=kernels.to(dtype), turned=_turned(kernels).to(dtype), bias=bias.to(dtype)
        )

    def forward(self, maps: Tensor) -> Tensor:
        with allowing(self.precision):
            return _rectified(maps, self.get_buffer("kernels"), self.get_buffer("bias"))

    def back(self, gradient: Tensor) -> Tensor:
        with allowing(self.precision):
            return functional.conv2d(gradient, self.get_buffer("turned"), padding=1)


class Winograd(nn.Module):
    """In a quarter of the multiplications."""

    def __init__(self, kernels: Tensor, bias: Tensor) -> None:
        super().__init__()
        _keep(self, values=winograd.at_points(kernels), bias=bias)

    def forward(self, maps: Tensor) -> Tensor:
        found = winograd.convolved(maps, self.get_buffer("values"), self.get_buffer("bias"))
        return found.relu_()

    def back(self, gradient: Tensor) -> Tensor:
        return winograd.convolved(gradient, self.get_buffer("values"), turned=True)


class InParts(nn.Module):
    """Of an image in float32, by a GPU that rounds what it multiplies.

    The image is the sum of three that bfloat16 holds without rounding, the kernels are to 2⁻¹⁷ that
    of two, and products are added up in float32: the five products that count are a convolution of
    as many images at once. The gradient is rounded as a layer's.
    """

    CHANNELS_OUT = 8
    """Of ``back``, for the sake of alignment; all but three are 0."""

    def __init__(self, kernels: Tensor, bias: Tensor, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        self.dtype = torch.bfloat16 if precision == "bf16" else kernels.dtype
        coarse, fine = _parts(kernels, 2)
        stacked = torch.cat([coarse, coarse, coarse, fine, fine, torch.zeros_like(fine[:, :1])], 1)
        turned = _turned(kernels)
        turned = functional.pad(turned, (0, 0, 0, 0, 0, 0, 0, self.CHANNELS_OUT - len(turned)))
        kept = {"kernels": stacked, "turned": turned, "bias": bias}
        _keep(self, **{name: tensor.to(self.dtype) for name, tensor in kept.items()})

    def parts(self, image: Tensor) -> Tensor:
        """Returns what ``forward`` takes in place of (B, 3, H, W) images: (B, 16, H, W)."""
        high, middle, low = _parts(image, 3)
        padding = torch.zeros_like(high[:, :1])
        return torch.cat([high, middle, low, high, middle, padding], 1).to(self.dtype)

    def forward(self, parts: Tensor) -> Tensor:
        with allowing(self.precision):
            return _rectified(parts, self.get_buffer("kernels"), self.get_buffer("bias"))

    def back(self, gradient: Tensor) -> Tensor:
        with allowing(self.precision):
            found = functional.conv2d(gradient, self.get_buffer("turned"), padding=1)
        return found[:, :3].float()


class InStrips(nn.Module):
    """In the precision of its kernels, whatever that of the layers above.

    Where the two differ, a CPU goes through the maps strip by strip: no copy of the whole.

    Args:
        kernels, bias: as above.
        dtype: of the layer's maps, which those before it do not have.
    """

    def __init__(self, kernels: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        _keep(self, kernels=kernels, turned=_turned(kernels), bias=bias)

    def forward(self, maps: Tensor) -> Tensor:
        kernels = self.get_buffer("kernels")
        return self._convolved(maps, kernels, self.get_buffer("bias"), self.dtype).relu_()

    def back(self, gradient: Tensor) -> Tensor:
        kernels = self.get_buffer("turned")
        return self._convolved(gradient, kernels, None, kernels.dtype)

    @staticmethod
    @allowing("float32")
    def _convolved(
        maps: Tensor, kernels: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        if maps.dtype == dtype or maps.device.type != "cpu":
            return functional.conv2d(maps.to(kernels.dtype), kernels, bias, padding=1).to(dtype)
        count, _, height, width = maps.shape
        rows = max(1, POSITIONS // width)
        found = torch.empty(
            (count, len(kernels), height, width), dtype=dtype, memory_format=torch.channels_last
        )
        for begin in range(0, height, rows):
            end = min(begin + rows, height)
            above, below = min(begin, 1), min(height - end, 1)
            strip = maps[:, :, begin - above : end + below].to(kernels.dtype)
            lacking = (0, 0, 1 - above, 1 - below)
            strip = functional.pad(strip, lacking).contiguous(memory_format=torch.channels_last)
            found[:, :, begin:end] = functional.conv2d(strip, kernels, bias, padding=(0, 1))
        return found


Convolution = Direct | Winograd | InParts | InStrips


def _rectified(maps: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """Returns a layer's maps after ReLU; on a GPU without going through them once more for it."""
    if has_cudnn(maps):
        one = (1, 1)  # stride, padding and dilation
        return torch.cudnn_convolution_relu(maps, kernels, bias, one, one, one, 1)
    return functional.conv2d(maps, kernels, bias, padding=1).relu_()


def _parts(values: Tensor, count: int) -> list[Tensor]:
    """Returns bfloat16 values that float32 values are the sum of, to 8 · ``count`` bits."""
    found = []
    for _ in range(count):
        found.append(values.bfloat16())
        values = values - found[-1]
    return found


def _turned(kernels: Tensor) -> Tensor:
    return kernels.flip(2, 3).transpose(0, 1)


def _keep(module: nn.Module, **tensors: Tensor) -> None:
    """Has them follow the module to its device, and stay out of every checkpoint."""
    for name, tensor in tensors.items():
        kept = tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
        module.register_buffer(name, kept, persistent=False)
