"""Runs that diverge, stand still or gain too little: what they do, and what they report."""

from __future__ import annotations

import itertools
import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_params, write_params
from test_checkpointing import run_stopped_at
from test_stylize import history, losses_of, outputs
from test_tracking import inspected

from pipeline import paths
from pipeline.errors import UserError
from pipeline.imaging.picture_files import read_picture
from pipeline.imaging.tensors import to_picture
from pipeline.losses.objective import Objective
from pipeline.networks.weight_files import load_backbone, save_weights
from pipeline.stages.stylize import stylize
from pipeline.transfer.convergence import (
    CHECK_INTERVAL,
    DIVERGENCE_FACTOR,
    STANDSTILL_ITERATIONS,
    Convergence,
)
from pipeline.transfer.module import StyleTransfer

EVALUATIONS = 60


@pytest.fixture
def settled(prepared: Path, weights_file: Path) -> Any:
    """Changes the experiment ``first`` of 60 evaluations."""

    def settle(every: float = 1000, **settings: Any) -> None:
        params: Any = tiny_params(weights_file)
        params["defaults"] |= {"evaluations": EVALUATIONS, "precision": "float32"}
        params["experiments"]["first"].update(settings)
        params["checkpoints"] = {"every": every}
        write_params(prepared, params)

    settle()
    return settle


def status() -> dict[str, Any]:
    """Returns how the run ended; the losses and counts are ``losses_of``'s."""
    content = json.loads((paths.EXPERIMENTS / "first/status.json").read_text())
    return {name: content[name] for name in ("kind", "reason", "notes")}


def multiply_losses(monkeypatch: pytest.MonkeyPatch, evaluations: set[int], factor: float) -> None:
    """Multiplies the losses of some evaluations."""
    honest = StyleTransfer.training_step

    def multiplied(self: StyleTransfer, *arguments: Any) -> torch.Tensor:
        loss = honest(self, *arguments)
        if self.run.evaluations in evaluations:
            self.losses = {name: factor * value for name, value in self.losses.items()}
            return factor * loss
        return loss

    monkeypatch.setattr(StyleTransfer, "training_step", multiplied)


def test_run_that_uses_its_budget_has_no_notes(settled: Any) -> None:
    settled(evaluations=5)  # while the loss falls with each
    stylize("first")
    assert status() == {"kind": "budget", "reason": "all 5 evaluations were used", "notes": []}


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e9])
def test_run_that_diverges_once_continues_from_its_best_image(
    factor: float, settled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply_losses(monkeypatch, {23}, factor)
    handler = signal.getsignal(signal.SIGINT)
    stylize("first")
    assert signal.getsignal(signal.SIGINT) is handler
    ended = status()
    assert ended["kind"] == "budget"
    assert len(ended["notes"]) == 1
    assert "at evaluation 23" in ended["notes"][0]
    assert (
        "went on from the best image, with lbfgs.lr and largest_step times 0.1" in ended["notes"][0]
    )
    rows = history("first")
    assert rows[-1]["evaluation"] == EVALUATIONS
    best = min(row["total"] for row in rows if row["evaluation"] <= 30)
    again = next(row for row in rows if row["evaluation"] > 30)
    assert again["total"] == pytest.approx(best, rel=1e-4)
    metrics = losses_of("first")
    assert metrics["total"] < best


def test_run_that_diverges_twice_ends_with_its_best_image(
    settled: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    multiply_losses(monkeypatch, {23, 34}, float("nan"))
    stylize("first")
    ended = status()
    assert ended["kind"] == "divergence"
    assert "at evaluation 34; the result is the image of evaluation 3" in ended["reason"]
    assert len(ended["notes"]) == 2
    assert "first: ended by divergence" in capsys.readouterr().out
    metrics = losses_of("first")
    assert metrics["total"] == pytest.approx(
        min(row["total"] for row in history("first")), rel=1e-4
    )


def test_second_try_recovers_from_steps_that_are_too_long(settled: Any) -> None:
    """No loss is changed here: L-BFGS itself diverges, and with shorter steps it does not."""
    settled(lbfgs={"lr": 12.0, "scaling": "newest"}, largest_step=1.0)
    stylize("first")
    ended = status()
    assert ended["notes"]
    rows = history("first")
    metrics = losses_of("first")
    assert metrics["total"] <= min(row["total"] for row in rows) * (1 + 1e-4)
    assert metrics["total"] < 0.7 * rows[0]["total"]


@pytest.mark.parametrize("evaluation", [5, 24, 28, 33, 45])
def test_interrupted_run_that_diverged_continues_to_the_same_bits(
    evaluation: int, settled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply_losses(monkeypatch, {23}, float("nan"))
    settled(every=0, early_stop={"evaluations": 15, "gain": 0.01})
    stylize("first")
    expected = outputs("first")
    run_stopped_at(monkeypatch, evaluation)
    stylize("first")
    assert outputs("first") == expected


@pytest.mark.parametrize("evaluations", [55, 60, 200])
@pytest.mark.parametrize("diverging", [set[int](), {54}, {23, 54}])
def test_run_interrupted_before_its_results_were_written_repeats_them(
    diverging: set[int], evaluations: int, settled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What decided the end lies before the last checkpoint, and is not decided again."""
    multiply_losses(monkeypatch, diverging, float("nan"))
    settled(every=0, evaluations=evaluations, early_stop={"evaluations": 13, "gain": 0.04})
    stylize("first")
    expected = outputs("first")

    def full(*_: Any) -> None:
        raise UserError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.experiments.run._write_results", full)
        with pytest.raises(UserError):
            stylize("first")
    stylize("first")
    assert outputs("first") == expected


def test_divergence_at_the_last_step_is_noticed(
    settled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = StyleTransfer.optimizer_step

    def diverge_at_last(self: StyleTransfer, *arguments: Any, **options: Any) -> None:
        honest(self, *arguments, **options)
        if self.run.iterations == EVALUATIONS:
            self.image = self.image * float("nan")

    monkeypatch.setattr(StyleTransfer, "optimizer_step", diverge_at_last)
    stylize("first")
    assert status()["kind"] == "divergence"
    assert status()["reason"].startswith("the total loss is nan after the last step")
    metrics = losses_of("first")
    assert metrics["total"] == pytest.approx(
        min(row["total"] for row in history("first")), rel=1e-4
    )


def test_divergence_in_bf16_does_not_change_the_precision(
    settled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(precision="bf16")
    multiply_losses(monkeypatch, {24, 25}, 1e9)
    stylize("first")
    (note,) = status()["notes"]
    assert "at evaluation 24" in note
    metrics = losses_of("first")
    assert metrics["total"] < min(row["total"] for row in history("first")[:23]) * 1.05


def test_second_try_is_logged_to_wandb_once(settled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    multiply_losses(monkeypatch, {23}, float("nan"))
    stylize("first")
    logged = [json.dumps(row) for row in inspected(Path.cwd()) if "history" in row]
    assert sum('"total"' in row for row in logged) == len(history("first"))


@pytest.mark.parametrize("tolerance", ["tolerance_grad", "tolerance_change"])
def test_error_names_the_tolerance_that_prevents_every_step(tolerance: str, settled: Any) -> None:
    settled(lbfgs={tolerance: 1e6})
    with pytest.raises(UserError, match=f"did not move: .*lbfgs.{tolerance}"):
        stylize("first")


def test_start_whose_loss_is_too_large_is_an_error_about_the_weights(settled: Any) -> None:
    settled(style_weight=1e300, content_weight=1e300)
    error = "total is inf at evaluation 1, which is the start itself: .* only their ratios count"
    with pytest.raises(UserError, match=error):
        stylize("first")
    assert not (paths.EXPERIMENTS / "first/image.png").exists()


def test_start_without_features_is_an_error_about_the_network(settled: Any) -> None:
    weights, pooling = load_backbone(paths.WEIGHTS_FILE)
    weights["conv2_1.weight"] = weights["conv2_1.weight"] * 1e30
    save_weights(paths.WEIGHTS_FILE, weights, pooling=pooling)
    error = "content_conv2_2 is (nan|inf) at evaluation 1, which is the start itself: .* `backbone`"
    with pytest.raises(UserError, match=error):
        stylize("first")
    assert not (paths.EXPERIMENTS / "first/image.png").exists()


@pytest.mark.parametrize(
    ("lbfgs", "reason"),
    [
        ({"tolerance_grad": 1e6}, "no part of the gradient is above lbfgs.tolerance_grad"),
        ({"tolerance_change": 1e6}, "no direction gains more than lbfgs.tolerance_change"),
    ],
)
def test_standstill_ends_the_run(
    lbfgs: dict[str, float], reason: str, settled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = StyleTransfer.configure_optimizers

    def tolerant(self: StyleTransfer) -> Any:
        optimizer = honest(self)
        step = optimizer.step

        def later(*arguments: Any, **options: Any) -> Any:
            if self.run.iterations == 8:  # once it has moved
                optimizer.param_groups[0].update(lbfgs)
            return step(*arguments, **options)

        optimizer.step = later  # type: ignore[method-assign]
        return optimizer

    monkeypatch.setattr(StyleTransfer, "configure_optimizers", tolerant)
    stylize("first")
    ended = status()
    assert ended["kind"] == "standstill"
    assert ended["reason"].endswith(reason)
    assert len(history("first")) == STANDSTILL_ITERATIONS + CHECK_INTERVAL


def test_standstill_names_a_failed_line_search(
    settled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(lbfgs={"line_search_fn": "strong_wolfe", "max_eval": 3}, evaluations=400)
    searches = itertools.count(1)

    def nothing(*_: Any, **options: Any) -> tuple[float, None, float, int]:
        return 0.0, None, 1.0 if next(searches) <= 5 else 0.0, 0

    monkeypatch.setattr("pipeline.optim.lbfgs._strong_wolfe", nothing)
    stylize("first")
    assert status()["reason"].endswith("the line search finds no lower loss")


def test_early_stop_ends_a_run_that_gains_too_little(settled: Any) -> None:
    stylize("first")
    whole = [row["total"] for row in history("first")]
    settled(early_stop={"evaluations": 10, "gain": 0.15})
    stylize("first")
    ended, totals = status(), [row["total"] for row in history("first")]
    assert ended["kind"] == "early stop"
    assert "less than early_stop asks for (15.00%)" in ended["reason"]
    assert totals == whole[: len(totals)]
    assert 10 < len(totals) < EVALUATIONS
    assert min(totals[-20:]) > 0.8 * min(totals[:-20])


def rows(totals: list[float]) -> list[dict[str, float]]:
    return [
        {"evaluation": index + 1, "iteration": index, "total": total}
        for index, total in enumerate(totals)
    ]


def test_loss_that_rises_for_a_while_is_no_divergence() -> None:
    convergence = Convergence(EVALUATIONS)
    convergence.observe(rows([1.0, 0.999 * DIVERGENCE_FACTOR, 0.5, 0.1]))
    assert not convergence.divergence
    convergence.observe(rows([1.001 * DIVERGENCE_FACTOR]))
    assert "1000 times that of the start" in convergence.divergence


def test_trials_of_a_line_search_are_no_divergence() -> None:
    convergence = Convergence(EVALUATIONS)
    tried = [1.0, 1e9, math.nan, 0.9]
    convergence.observe([{**row, "iteration": 0} for row in rows(tried)])
    assert not convergence.divergence
    assert convergence.lowest_total == 0.9
    convergence.observe([{**row, "iteration": 1} for row in rows([math.nan])])
    assert convergence.divergence


def test_trials_of_a_line_search_are_no_standstill() -> None:
    convergence = Convergence(EVALUATIONS)
    for row in rows([1.0] * 40):
        convergence.observe([{**row, "iteration": 7}])
    assert convergence.unchanged == 0


def test_best_image_is_that_of_the_lowest_loss(images: Any, monkeypatch: Any) -> None:
    class Constant(Objective):
        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            raise NotImplementedError

    module = StyleTransfer(Constant.__new__(Constant), images[0], {})
    convergence = Convergence(EVALUATIONS)
    seen = {}
    for total in (3.0, 2.0, float("nan"), 5.0):
        module.losses = {"total": torch.tensor(total)}
        module.evaluated = images[0] + total / 10
        seen[total] = module.evaluated.clone()
        convergence.on_after_backward(None, module)  # type: ignore[arg-type]
    assert convergence.best_image is not None
    assert torch.equal(convergence.best_image, seen[2.0])
    # In another precision the best image has another loss.
    convergence.change_precision(lambda image: {"total": torch.tensor(2.5)})  # type: ignore[arg-type]
    for total, better in ((2.6, False), (2.4, True)):
        module.losses = {"total": torch.tensor(total)}
        module.evaluated = images[0] + total / 10
        convergence.on_after_backward(None, module)  # type: ignore[arg-type]
        assert torch.equal(convergence.best_image, module.evaluated) == better


def test_picture_of_a_diverged_run_is_its_best_image(
    settled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply_losses(monkeypatch, {23, 34}, float("nan"))
    best_images: list[torch.Tensor] = []
    honest = Convergence._raise_if_diverged

    def looking(self: Convergence) -> None:
        if self.divergence and self.best_image is not None:
            best_images.append(self.best_image.clone())
        honest(self)

    monkeypatch.setattr(Convergence, "_raise_if_diverged", looking)
    stylize("first")
    picture = read_picture(paths.EXPERIMENTS / "first/image.png")
    assert picture.tobytes() == to_picture(best_images[-1]).tobytes()
