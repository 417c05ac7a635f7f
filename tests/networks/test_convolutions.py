"""The frozen network's convolutions and their derivatives, compared with torch's in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.networks.frozen import winograd
from pipeline.networks.frozen.convolutions import Direct, SplitInput, Winograd, frozen_convolution
from pipeline.runtime.precision import Precision


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def channels_last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(16, 12), (1, 1), (2, 9), (45, 23), (33, 5)])
@pytest.mark.parametrize("strip_size", [1, 700, 2**16])
def test_winograd_and_its_derivative_agree_with_torch(
    size: tuple[int, int], strip_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For incomplete tiles at the edges, and for one strip or many."""
    monkeypatch.setattr(winograd, "STRIP_SIZE", strip_size)
    maps, kernels, bias = random(1, 8, *size), random(5, 8, 3, 3, seed=1), random(5, seed=2)
    maps.requires_grad_()
    expected = functional.conv2d(maps, kernels, bias, padding=1)
    gradient = random(*expected.shape, seed=3)
    (expected_gradient,) = torch.autograd.grad(expected, maps, gradient)
    convolution = Winograd(kernels, bias)
    result = convolution(channels_last(maps.detach()))
    torch.testing.assert_close(result, expected.relu())
    torch.testing.assert_close(convolution.backward(channels_last(gradient)), expected_gradient)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_rounding_of_winograd_in_float32_is_small() -> None:
    """It is 8.5e-7 of the result; torch's is half of that with AVX2, a fifth with AVX-512."""
    maps, kernels = random(1, 128, 24, 24).relu(), random(128, 128, 3, 3, seed=1)
    exact = functional.conv2d(maps, kernels, padding=1)
    transformed = winograd.transform_kernels(kernels.float())
    result = winograd.convolve(channels_last(maps.float()), transformed)
    assert (result - exact).norm() < 1.2e-6 * exact.norm()


def test_algorithm_is_chosen_by_channels_and_precision() -> None:
    wide, narrow, bias = random(128, 128, 3, 3), random(128, 64, 3, 3), random(128)
    assert isinstance(frozen_convolution(wide, bias, "float32"), Winograd)
    assert isinstance(frozen_convolution(narrow, bias, "float32"), Direct)
    assert isinstance(frozen_convolution(wide, bias, "bf16"), Direct)


@pytest.mark.parametrize(("precision", "tolerance"), [("tf32", 3e-6), ("bf16", 0.005)])
def test_split_image_is_not_rounded(precision: Precision, tolerance: float) -> None:
    """In bf16 only the result is rounded; rounding the image would cause 16 times the error."""
    image, kernels, bias = random(1, 3, 9, 12), random(16, 3, 3, 3, seed=1), random(16, seed=2)
    image += 20 * torch.sign(image)
    kernels -= kernels.mean((1, 2, 3), keepdim=True)
    exact = functional.conv2d(image, kernels, bias, padding=1).relu()
    convolution = SplitInput(kernels.float(), bias.float(), precision)
    result = convolution(convolution.split(channels_last(image.float())))
    assert (result - exact).norm() < tolerance * exact.norm()
    gradient = channels_last(random(*exact.shape, seed=3)).to(result.dtype)
    expected = functional.conv_transpose2d(gradient.double(), kernels, padding=1)
    assert (convolution.backward(gradient) - expected).norm() < tolerance * expected.norm()
