"""What is done with maps, against autograd."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pipeline.networks.frozen.operations import (
    gram_matrices,
    kept_for_relu,
    pooled,
    pooled_back_through_relu,
    spread_through_relu,
)
from pipeline.runtime.precision import cpu_has_bf16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(6, 8), (7, 5), (2, 3)])
def test_way_back_through_average_pooling_and_relu(
    size: tuple[int, int], dtype: torch.dtype
) -> None:
    """In one pass and in two, whatever edge was left out by the pooling."""
    generator = torch.Generator().manual_seed(0)
    before = torch.randn((1, 4, *size), generator=generator).to(dtype)
    before = before.contiguous(memory_format=torch.channels_last).requires_grad_()
    maps = before.relu()
    expected = functional.avg_pool2d(maps, 2)
    gradient = torch.randn(expected.shape, generator=generator).to(dtype)
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    (wanted,) = torch.autograd.grad(expected, before, gradient)
    found, (shape, where) = pooled(maps.detach(), "avg")
    torch.testing.assert_close(found, expected)
    kept = kept_for_relu(maps.detach(), for_gram=False)
    assert torch.equal(pooled_back_through_relu(gradient, shape, where, kept), wanted)
    in_one = spread_through_relu(gradient, kept)
    assert torch.equal(in_one, wanted)
    assert in_one.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not cpu_has_bf16(), reason="the processor does not multiply bfloat16")
@pytest.mark.parametrize("size", [(16, 60, 80), (64, 192, 256), (512, 12, 16)])
def test_gram_matrix_of_bfloat16_is_nearly_float32(size: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn((2, *size), generator=generator).relu().bfloat16()
    maps = maps.contiguous(memory_format=torch.channels_last)
    found = gram_matrices(maps)
    flat = maps.double().flatten(2)
    expected = flat @ flat.mT / flat.shape[2]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=0)
    assert torch.equal(found, found.mT)
