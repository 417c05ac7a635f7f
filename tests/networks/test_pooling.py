"""The gradient through average pooling and ReLU, against autograd."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pipeline.networks.frozen.pooling import average_pool_relu_backward, pool, pool_relu_backward


@pytest.mark.parametrize("kept", [torch.bool, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(6, 8), (7, 5), (2, 3)])
def test_gradient_through_average_pooling_and_relu_is_that_of_autograd(
    size: tuple[int, int], dtype: torch.dtype, kept: torch.dtype | None
) -> None:
    """In one pass and in two, from a mask and from values, with and without an odd edge."""
    generator = torch.Generator().manual_seed(0)
    before = torch.randn((1, 4, *size), generator=generator).to(dtype)
    before = before.contiguous(memory_format=torch.channels_last).requires_grad_()
    maps = before.relu()
    expected = functional.avg_pool2d(maps, 2)
    gradient = torch.randn(expected.shape, generator=generator).to(dtype)
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    (wanted,) = torch.autograd.grad(expected, before, gradient)
    smaller, indices = pool(maps.detach(), "avg")
    torch.testing.assert_close(smaller, expected)
    mask_or_maps = maps.detach().to(kept or dtype)
    assert torch.equal(pool_relu_backward(gradient, indices, mask_or_maps), wanted)
    in_one_pass = average_pool_relu_backward(gradient, mask_or_maps)
    assert torch.equal(in_one_pass, wanted)
    assert in_one_pass.is_contiguous(memory_format=torch.channels_last)
