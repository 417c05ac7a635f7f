"""What precision a run has, by what it asks for and where it is."""

from __future__ import annotations

import pytest
import torch
from conftest import REPOSITORY
from pipeline.transfer.resources import find_precision

from pipeline.config.params import read_params
from pipeline.config.schema import Experiment
from pipeline.errors import UserError
from pipeline.runtime import precision
from pipeline.transfer import resources

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def asking_for(precision: str) -> Experiment:
    experiment = next(iter(read_params(REPOSITORY / "params.yaml").experiments.values()))
    return experiment.model_copy(update={"precision": precision})


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "tf32")])
def test_a_gpu_takes_bf16_where_it_has_it(
    has_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (precision, resources):
        monkeypatch.setattr(module, "gpu_has_bf16", lambda: has_bf16)
    assert find_precision(asking_for("auto"), GPU) == expected
    assert find_precision(asking_for("float32"), GPU) == "float32"
    if has_bf16:
        assert find_precision(asking_for("bf16"), GPU) == "bf16"
    else:
        with pytest.raises(UserError, match=r"'bf16', which this GPU does not have\. Use 'auto'"):
            find_precision(asking_for("bf16"), GPU)


def test_a_cpu_has_no_tf32() -> None:
    assert find_precision(asking_for("bf16"), CPU) == "bf16"
    with pytest.raises(UserError, match="only a CUDA GPU has; the device is cpu"):
        find_precision(asking_for("tf32"), CPU)
