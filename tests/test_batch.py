"""Experiments run as one batch: each comes to what it would have come to alone."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_params, write_params
from test_resuming import StopError
from test_stylize import history, outputs
from torch import Tensor

from pipeline import paths, together
from pipeline.batch import Batch, Member
from pipeline.callbacks import Refinement
from pipeline.checkpoints import sole_run
from pipeline.errors import UserError
from pipeline.frozen import FrozenFeatures
from pipeline.module import StyleTransfer
from pipeline.objective import Objective, Objectives
from pipeline.params import read_params
from pipeline.pictures import read_picture
from pipeline.plans import TOGETHER
from pipeline.precision import Precision
from pipeline.runs import Run
from pipeline.stages.stylize import stylize
from pipeline.vgg import down_to

EVALUATIONS = 20
# Seeds from which rounding does not grow: from others it is a hundredth after twenty steps.
ALIKE: dict[str, dict[str, Any]] = {
    "first": {"content": "chelsea", "style": "gravel", "seed": 1, "content_weight": 1.0},
    "second": {"content": "chelsea", "style": "coffee", "init": "content"},
    "short": {"content": "chelsea", "style": "gravel", "seed": 4, "evaluations": 13},
    "smooth": {"content": "chelsea", "style": "gravel", "range_weight": 0, "variation_weight": 1.0},
}


@pytest.fixture
def settled(prepared: Path, weights_file: Path) -> Any:
    """Writes params.yaml: experiments of one size, with some settings."""

    def settle(every: float = 30, experiments: Any = ALIKE, **settings: Any) -> None:
        params: Any = tiny_params(weights_file)
        params["defaults"] |= {"evaluations": EVALUATIONS, "intermediates": [1, 7, 14]}
        params["defaults"] |= {"deterministic": False, **settings}
        params["experiments"], params["figures"] = experiments, {}
        params["checkpoints"] = {"every": every}
        write_params(Path(), params)

    settle()
    return settle


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOGETHER, " ".join(ALIKE))


def alone() -> dict[str, dict[str, bytes]]:
    """Runs each experiment by itself, and returns what it wrote."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(TOGETHER, raising=False)
        for name in read_params().experiments:
            stylize(name, read_params())
    return {name: outputs(name) for name in read_params().experiments}


def kept() -> set[str]:
    return {file.name.partition("-")[0] for file in Path("data/checkpoints").glob("*.pt")}


def without_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> None:
        raise AssertionError("an image was evaluated again")

    monkeypatch.setattr(StyleTransfer, "training_step", forbidden)


def assert_like(name: str, expected: dict[str, bytes]) -> None:
    """Checks what an experiment wrote against what it would have alone, to rounding."""
    found = outputs(name)
    assert set(found) == set(expected)
    assert found["status.json"] == expected["status.json"]
    assert found["provenance.json"] == expected["provenance.json"]
    metrics, before = (json.loads(each["metrics.json"]) for each in (found, expected))
    assert metrics == pytest.approx(before, rel=0.02, abs=1e-4)
    rows, lines = history(name), expected["history.csv"].decode().splitlines()[1:]
    assert len(rows) == len(lines)
    for row, line in zip(rows, lines, strict=True):
        assert list(row.values()) == pytest.approx(
            [float(v) for v in line.split(",")[1:]], rel=0.02, abs=1e-4
        )
    image = np.asarray(read_picture(paths.EXPERIMENTS / name / "image.png"), dtype=int)
    Path("expected.png").write_bytes(expected["image.png"])
    assert np.abs(image - np.asarray(read_picture(Path("expected.png")), dtype=int)).max() <= 2


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_losses_and_gradients_are_those_of_each_alone(
    precision: Precision, weights: dict[str, Tensor]
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((6, 3, 40, 56), generator=generator)
    features = FrozenFeatures(down_to(weights, ["conv3_1"]), "avg", precision, "cpu")
    members = [
        Objective(
            features,
            images[i : i + 1],
            images[i + 1 : i + 2, :, :32],
            content_layers={"conv2_2": 1.0 + i},
            style_layers={"conv1_1": 0.5, "conv3_1": 0.5 * i},
            content_weight=0.1 * i,
            style_weight=1.0 + i,
            variation_weight=0.1 * (i == 1),
            range_weight=float(i == 2),
        )
        for i in range(3)
    ]
    together = (images[3:] + 0.05).requires_grad_()
    batch = Objectives(members)
    losses = batch.named(batch(together))
    losses["total"].sum().backward()
    assert together.grad is not None
    for i, member in enumerate(members):
        image = (images[3 + i : 4 + i] + 0.05).requires_grad_()
        expected = member.named(member(image))
        expected["total"].backward()
        assert list(losses) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(losses[name][i], value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(together.grad[i : i + 1], image.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_each_comes_to_what_it_would_alone_and_has_nothing_left_to_compute(
    precision: Precision, settled: Any, monkeypatch: pytest.MonkeyPatch, asked: None
) -> None:
    settled(precision=precision)
    expected = alone()
    without_evaluations(monkeypatch)
    for name in ALIKE:
        stylize(name, read_params())
        assert_like(name, expected[name])
    assert kept() == set()


def test_one_that_goes_on_in_float32_leaves_and_does_so_alone(
    settled: Any, monkeypatch: pytest.MonkeyPatch, asked: None
) -> None:
    monkeypatch.setattr(Refinement, "EVALUATIONS", 5)
    monkeypatch.setattr(Refinement, "GAIN", 0.3)
    settled(precision="bf16")
    expected = alone()
    exact = {name: json.loads(each["metrics.json"]) for name, each in expected.items()}
    assert any(each["float32_evaluations"] for each in exact.values())
    for name in ALIKE:
        stylize(name, read_params())
        assert_like(name, expected[name])


def test_one_that_stops_early_or_diverges_is_as_it_would_be_alone(
    settled: Any, monkeypatch: pytest.MonkeyPatch, asked: None
) -> None:
    note = StyleTransfer.note

    def spoilt(self: StyleTransfer, evaluated: Tensor, losses: dict[str, Tensor]) -> None:
        first = self.objective.content_weight == ALIKE["first"]["content_weight"]
        if first and self.evaluations == 6:
            losses = {**losses, "total": losses["total"] * float("nan")}
        note(self, evaluated, losses)

    monkeypatch.setattr(StyleTransfer, "note", spoilt)
    stop = {"early_stop": {"evaluations": 10, "gain": 0.9}}
    settled(experiments={**ALIKE, "short": {**ALIKE["short"], **stop}})
    expected = alone()
    assert [b"Diverged" in expected[name]["status.json"] for name in ALIKE] == [True] + 3 * [False]
    assert b"early stop" in expected["short"]["status.json"]
    for name in ALIKE:
        stylize(name, read_params())
        assert_like(name, expected[name])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_go_on_where_a_signal_ended_them(
    number: signal.Signals, settled: Any, monkeypatch: pytest.MonkeyPatch, asked: None
) -> None:
    expected = alone()
    step, handler = Batch.training_step, signal.getsignal(signal.SIGINT)

    def killed(self: Batch, *arguments: Any) -> Tensor:
        if self.going[0].module.evaluations == 9:
            os.kill(os.getpid(), number)
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "training_step", killed)
        with pytest.raises(SystemExit) as ended:
            stylize("first", read_params())
    assert ended.value.code == 128 + number
    assert signal.getsignal(signal.SIGINT) is handler
    assert kept() == set(ALIKE)
    begun = []
    step_alone = StyleTransfer.training_step

    def counted(self: StyleTransfer, *arguments: Any) -> Tensor:
        begun.append(self.evaluations)
        return step_alone(self, *arguments)

    monkeypatch.setattr(StyleTransfer, "training_step", counted)
    for name in ALIKE:
        begun.clear()
        stylize(name, read_params())
        assert begun[0] == 10
        assert_like(name, expected[name])


def test_checkpoints_are_written_on_the_way_too(
    settled: Any, monkeypatch: pytest.MonkeyPatch, asked: None
) -> None:
    settled(every=0)
    step = Batch.training_step

    def stopped(self: Batch, *arguments: Any) -> Tensor:
        if self.going[0].module.evaluations == 4:
            raise StopError
        return step(self, *arguments)

    monkeypatch.setattr(Batch, "training_step", stopped)
    with pytest.raises(StopError):
        stylize("first", read_params())
    assert kept() == set(ALIKE)


@pytest.mark.parametrize(
    "settings",
    [
        {"deterministic": True},
        {"lbfgs": {"line_search_fn": "strong_wolfe"}},
        {"warm_start": "embedded"},
        {"schedule": "coarse_to_fine"},
    ],
)
def test_some_keep_to_themselves(
    settings: dict[str, Any], settled: Any, monkeypatch: pytest.MonkeyPatch, asked: None
) -> None:
    settled(evaluations=3, **settings)
    monkeypatch.setattr(together, "fit_together", lambda *_: pytest.fail("run together"))
    stylize("first", read_params())


@pytest.mark.parametrize(
    "other",
    [
        {"size": 40},
        {"precision": "bf16"},
        {"style_layers": ["conv1_1"]},
        {"convention": "paper"},
        {"first_step": 0.002},
        {"largest_step": 0.2},
        {"lbfgs": {"history_size": 5}},
        {"deterministic": True},
    ],
)
def test_those_unlike_it_are_left_alone(
    other: dict[str, Any], settled: Any, monkeypatch: pytest.MonkeyPatch, asked: None
) -> None:
    experiments = {**ALIKE, "second": {**ALIKE["second"], **other}}
    settled(precision="float32", experiments=experiments, evaluations=3)
    with sole_run("short"):
        stylize("first", read_params())
    assert kept() == {"smooth"}


def test_none_is_run_along_that_was_not_asked_for(
    settled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(evaluations=3)
    stylize("first", read_params())
    assert kept() == set()
    monkeypatch.setenv(TOGETHER, "second short")
    stylize("first", read_params())
    assert kept() == set()
    monkeypatch.setenv(TOGETHER, "second first short")  # second has been run
    stylize("first", read_params())
    assert kept() == {"short"}


def test_batch_that_fails_hinders_nobody(
    settled: Any, monkeypatch: pytest.MonkeyPatch, asked: None, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = alone()
    monkeypatch.setattr(Objectives, "forward", lambda *_: torch.empty(-1))
    stylize("first", read_params())
    assert "not together, but one after another" in capsys.readouterr().out
    assert_like("first", expected["first"])


def test_one_that_cannot_begin_hinders_nobody(
    settled: Any, monkeypatch: pytest.MonkeyPatch, asked: None
) -> None:
    settled(evaluations=3)
    member = together._member

    def refusing(run: Run, *arguments: Any) -> Member:
        if run.name == "second":
            raise UserError("its style image is too small")
        return member(run, *arguments)

    monkeypatch.setattr(together, "_member", refusing)
    stylize("first", read_params())
    assert kept() == {"short", "smooth"}


def test_batch_has_no_more_members_than_the_memory_has_room_for(
    settled: Any, monkeypatch: pytest.MonkeyPatch, asked: None
) -> None:
    settled(evaluations=3)
    monkeypatch.setattr(together, "estimate", lambda demand: 1000)
    monkeypatch.setattr(together, "available", lambda device: together.SHARING * 3999)
    stylize("first", read_params())
    assert len(kept()) == 2
