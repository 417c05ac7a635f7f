"""What precision a run has, by what it asks for and where it is."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import UserError
from pipeline.runtime import device
from pipeline.runtime.device import find_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "tf32")])
def test_auto_on_a_gpu_is_bf16_if_it_has_it(
    has_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "gpu_has_bf16", lambda: has_bf16)
    assert find_precision("auto", GPU) == expected
    assert find_precision("float32", GPU) == "float32"
    if has_bf16:
        assert find_precision("bf16", GPU) == "bf16"
    else:
        with pytest.raises(UserError, match=r"'bf16', which this GPU does not have\. Use 'auto'"):
            find_precision("bf16", GPU)


def test_a_cpu_has_no_tf32() -> None:
    assert find_precision("bf16", CPU) == "bf16"
    with pytest.raises(UserError, match="only a CUDA GPU has; the device is cpu"):
        find_precision("tf32", CPU)
