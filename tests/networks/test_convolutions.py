"""The convolutions, against torch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.networks.frozen import winograd
from pipeline.networks.frozen.convolutions import Direct, InParts, Winograd, frozen_convolution
from pipeline.runtime.precision import Precision


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def channels_last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(16, 12), (1, 1), (2, 9), (45, 23), (33, 5)])
@pytest.mark.parametrize("values", [1, 700, 2**16])
def test_convolution_and_its_derivative_are_those_of_torch(
    size: tuple[int, int], values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is left over at the edges, and however many strips they are gone through in."""
    monkeypatch.setattr(winograd, "VALUES", values)
    maps, kernels, bias = random(1, 8, *size), random(5, 8, 3, 3, seed=1), random(5, seed=2)
    maps.requires_grad_()
    expected = functional.conv2d(maps, kernels, bias, padding=1)
    gradient = random(*expected.shape, seed=3)
    (back,) = torch.autograd.grad(expected, maps, gradient)
    convolution = Winograd(kernels, bias)
    found = convolution(channels_last(maps.detach()))
    torch.testing.assert_close(found, expected.relu())
    torch.testing.assert_close(convolution.back(channels_last(gradient)), back)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_rounding_in_float32_is_small() -> None:
    """8.5e-7 of the result. torch's own is half of that with AVX2, a fifth with AVX-512."""
    maps, kernels = random(1, 128, 24, 24).relu(), random(128, 128, 3, 3, seed=1)
    exact = functional.conv2d(maps, kernels, padding=1)
    found = winograd.convolved(channels_last(maps.float()), winograd.at_points(kernels.float()))
    assert (found - exact).norm() < 1.2e-6 * exact.norm()


def test_algorithm_is_chosen_by_channels_and_precision() -> None:
    wide, narrow, bias = random(128, 128, 3, 3), random(128, 64, 3, 3), random(128)
    assert isinstance(frozen_convolution(wide, bias, "float32"), Winograd)
    assert isinstance(frozen_convolution(narrow, bias, "float32"), Direct)
    assert isinstance(frozen_convolution(wide, bias, "bf16"), Direct)


@pytest.mark.parametrize(("precision", "off"), [("tf32", 3e-6), ("bf16", 0.005)])
def test_image_in_parts_is_not_rounded(precision: Precision, off: float) -> None:
    """In bfloat16 the maps are, once they are found; as much of an image would be 16 times that."""
    image, kernels, bias = random(1, 3, 9, 12), random(16, 3, 3, 3, seed=1), random(16, seed=2)
    image += 20 * torch.sign(image)
    kernels -= kernels.mean((1, 2, 3), keepdim=True)
    exact = functional.conv2d(image, kernels, bias, padding=1).relu()
    convolution = InParts(kernels.float(), bias.float(), precision)
    found = convolution(convolution.parts(channels_last(image.float())))
    assert (found - exact).norm() < off * exact.norm()
    gradient = channels_last(random(*exact.shape, seed=3)).to(found.dtype)
    back = functional.conv_transpose2d(gradient.double(), kernels, padding=1)
    assert (convolution.back(gradient) - back).norm() < max(off, 1e-6) * back.norm()
