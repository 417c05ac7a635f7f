"""Replayed evaluations, with an imitation of CUDA graphs; test_gpu.py has real ones."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from conftest import objective_of
from test_module import PLAIN, fit
from torch import Tensor

from pipeline.losses import evaluator as evaluator_module
from pipeline.losses.evaluator import Evaluation, Evaluator, RecordedObjective
from pipeline.losses.objective import MINIMISED, Objective
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.vgg import down_to
from pipeline.transfer.module import StyleTransfer


def imitated(evaluate: Callable[[], Evaluation], _: int) -> tuple[Callable[[], None], Evaluation]:
    """Records as a CUDA graph does: each replay leaves its results in the same memory."""
    losses, gradient = evaluate()
    results = {name: loss.clone() for name, loss in losses.items()}, gradient.clone()

    @torch.enable_grad()
    def again() -> None:
        losses, gradient = evaluate()
        for name, loss in losses.items():
            results[0][name].copy_(loss)
        results[1].copy_(gradient)

    return again, results


def objective(
    weights: dict[str, Tensor], images: tuple[Tensor, Tensor], style: str = "conv1_1"
) -> Objective:
    return objective_of(
        FrozenFeatures(down_to(weights, ["conv3_1"]), "avg"),
        images,
        content_layers={"conv2_2": 1.0},
        style_layers={style: 1.0},
        content_weight=0.1,
        style_weight=1.0,
        range_weight=2.0,
    )


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_run_by_replays_is_the_same_to_the_bit(
    weights: dict[str, Tensor],
    images: tuple[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    line_search: str | None,
) -> None:
    def run() -> StyleTransfer:
        lbfgs = {**PLAIN, "line_search_fn": line_search}
        module = StyleTransfer(objective(weights, images), images[1], lbfgs)
        fit(module, 8)
        return module

    expected = run()
    made = []

    def record(problem: Objective, image: Tensor) -> RecordedObjective:
        made.append(RecordedObjective(problem, image, imitated))
        return made[-1]

    monkeypatch.setattr(evaluator_module, "fastest_evaluation", record)
    replayed = run()
    assert len(made) == 1
    assert torch.equal(replayed.image, expected.image)
    assert not torch.equal(replayed.image, images[1])
    assert replayed.losses == expected.losses


def test_recording_is_gone_before_the_next_is_made(
    weights: dict[str, Tensor], images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    living: weakref.WeakSet[RecordedObjective] = weakref.WeakSet()

    def record(problem: Objective, image: Tensor) -> RecordedObjective:
        gc.collect()
        assert not living
        recorded = RecordedObjective(problem, image, imitated)
        living.add(recorded)
        return recorded

    monkeypatch.setattr(evaluator_module, "fastest_evaluation", record)
    evaluator = Evaluator()
    for _ in range(2):
        evaluator(objective(weights, images), images[1].requires_grad_())[MINIMISED].backward()
    assert len(living) == 1


def test_another_objective_is_evaluated_in_the_place_of_the_first(
    weights: dict[str, Tensor], images: tuple[Tensor, Tensor]
) -> None:
    first, second = (objective(weights, images, style) for style in ("conv1_1", "conv2_1"))
    evaluator = Evaluator()
    for each in (first, second, first):
        assert evaluator(each, images[1])["total"] == each(images[1])["total"]


def test_recording_that_does_not_follow_its_image_is_refused(
    weights: dict[str, Tensor], images: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(RuntimeError, match="a replay differs by"):
        RecordedObjective(
            objective(weights, images), images[1], lambda evaluate, _: (lambda: None, evaluate())
        )
