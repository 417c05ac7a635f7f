"""Gram matrices in chunks, against the definition."""

from __future__ import annotations

import pytest
import torch

from pipeline.losses.feature_terms.style import gram_matrix
from pipeline.networks.frozen import gram_matrix as gram_module
from pipeline.networks.frozen.gram_matrix import add_gram_matrix_gradient, gram_matrix_of
from pipeline.runtime.precision import cpu_has_bf16


def random_maps(channels: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn((1, channels, height, width), generator=generator).relu()
    return maps.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("chunk", [7, 30, 2**14])
def test_chunks_add_up_to_the_gram_matrix(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram_module, "CHUNK", chunk)
    maps = random_maps(4, 5, 6).double()
    torch.testing.assert_close(gram_matrix_of(maps), gram_matrix(maps))


@pytest.mark.parametrize("before", [False, True])
def test_gradient_of_the_gram_matrix_is_that_of_autograd(before: bool) -> None:
    maps = random_maps(4, 5, 6).double().requires_grad_()
    of_gram = torch.randn((4, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad(gram_matrix(maps), maps, of_gram)
    gradient = random_maps(4, 5, 6).double() if before else None
    if gradient is not None:
        expected = expected + gradient
    added = add_gram_matrix_gradient(of_gram, gradient, maps.detach())
    torch.testing.assert_close(added, expected)


@pytest.mark.skipif(not cpu_has_bf16(), reason="the processor does not multiply bfloat16")
@pytest.mark.parametrize("size", [(16, 60, 80), (64, 192, 256), (512, 12, 16)])
def test_gram_matrix_of_bfloat16_is_nearly_float32(size: tuple[int, int, int]) -> None:
    maps = random_maps(*size).bfloat16()
    approximate = gram_matrix_of(maps)
    assert approximate.dtype == torch.float32
    torch.testing.assert_close(approximate.double(), gram_matrix(maps.double()), rtol=2e-5, atol=0)
    assert torch.equal(approximate, approximate.mT)
