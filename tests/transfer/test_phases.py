"""What a run makes of its last and its best image, of its weights' unit, and of a perfect start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_params, write_params
from PIL import Image
from test_stylize import history

from pipeline import paths
from pipeline.config.params import read_params
from pipeline.errors import UserError
from pipeline.imaging.picture_files import read_picture
from pipeline.imaging.tensors import to_picture
from pipeline.networks.weight_files import load_backbone, save_weights
from pipeline.stages.fetch import fetch
from pipeline.stages.stylize import stylize
from pipeline.transfer.build import read_inputs
from pipeline.transfer.module import StyleTransfer
from pipeline.transfer.phases import phases_of


@pytest.fixture
def run(prepared: Path, weights_file: Path) -> Any:
    """Runs the experiment ``first`` with some settings; returns its picture, losses and status."""

    def stylized(**settings: Any) -> tuple[Image.Image, dict[str, float], dict[str, Any]]:
        params: Any = tiny_params(weights_file)
        params["defaults"] |= {"precision": "float32"}
        own = {"mine", "other"} & {settings.get("content"), settings.get("style")}
        params["images"] |= {name: {"source": f"{name}.png"} for name in own}
        params["experiments"] = {"first": {**params["experiments"]["first"], **settings}}
        params["figures"] = {}
        write_params(prepared, params)
        if own:
            fetch(read_params())
            write_params(prepared, params)
        stylize("first")
        folder = paths.EXPERIMENTS / "first"
        status = json.loads((folder / "status.json").read_text())
        return read_picture(folder / "image.png"), status["losses"] | status["counts"], status

    return stylized


def start() -> Image.Image:
    return to_picture(read_inputs(read_params().experiments["first"]).start)


def lowest_total() -> float:
    return min(row["total"] for row in history("first"))


# ── the unit of the weights ──


@pytest.mark.parametrize("factor", [1e-12, 2.5e-8, 1e-3, 0.3, 1e6, 1e12])
@pytest.mark.parametrize("convention", ["mean", "paper"])
def test_picture_is_the_same_for_any_common_factor_of_the_weights(
    convention: str, factor: float, run: Any
) -> None:
    settings = {"evaluations": 12, "convention": convention}
    weights = {"content_weight": 0.025, "style_weight": 1.0}
    expected, totals, _ = run(**settings, **weights, range_weight=40.0)
    scaled = {name: weight * factor for name, weight in weights.items()}
    picture, scaled_totals, status = run(**settings, **scaled, range_weight=40.0)
    assert picture.tobytes() == expected.tobytes()
    assert status["notes"] == []
    assert scaled_totals["total"] == pytest.approx(factor * totals["total"], rel=1e-5)


@pytest.mark.parametrize("factor", [1e-12, 1e-9, 1e9])
def test_picture_is_the_same_for_any_common_factor_of_the_layers(factor: float, run: Any) -> None:
    def settings(weight: float) -> dict[str, Any]:
        layers = {"conv1_1": weight, "conv2_1": 3 * weight}
        return {"content_layers": [], "style_layers": layers, "range_weight": 0.0}

    assert run(**settings(factor))[0].tobytes() == run(**settings(1.0))[0].tobytes()


@pytest.mark.parametrize("lbfgs", [{}, {"line_search_fn": "strong_wolfe"}, {"scaling": "newest"}])
@pytest.mark.parametrize("range_weight", [1e6, 1e12])
def test_huge_term_that_is_inactive_does_not_hinder_the_others(
    range_weight: float, lbfgs: dict[str, Any], run: Any
) -> None:
    """Losses beside it are down to a billionth of the largest weight."""
    run(evaluations=12, range_weight=range_weight, lbfgs=lbfgs)
    rows = history("first")
    assert min(row["total"] for row in rows) < 0.9 * rows[0]["total"]


def test_run_that_hardly_lowers_the_loss_says_so(run: Any) -> None:
    _, _, status = run(largest_step=1e-6)
    (note,) = status["notes"]
    assert note.startswith("The phase main hardly lowered the loss: from ")


# ── the last image and the best one ──


def spoil(monkeypatch: pytest.MonkeyPatch, phase: str, after: int, by: float) -> None:
    """Lets the steps of a phase after some evaluations lead away from the minimum."""
    honest = StyleTransfer.optimizer_step

    def spoiled(self: StyleTransfer, *arguments: Any, **options: Any) -> None:
        honest(self, *arguments, **options)
        if self.run.phase == phase and self.run.evaluations >= after:
            self.image = self.run.start + by * self.run.start.flip(3)

    monkeypatch.setattr(StyleTransfer, "optimizer_step", spoiled)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "line search": {"lbfgs": {"line_search_fn": "strong_wolfe"}},
    "bf16": {"precision": "bf16"},
    "range_weight": {"range_weight": 1e7},
    "early stop": {"early_stop": {"evaluations": 1, "gain": 0.9}},
    "warm start": {"warm_start": "embedded", "warm_evaluations": 6, "size": 48},
    "coarse to fine": {"schedule": "coarse_to_fine", "coarse_evaluations": 6, "size": 100},
}


@pytest.mark.parametrize("kind", KINDS)
def test_result_is_the_best_image_if_the_last_is_worse(
    kind: str, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, "main", after=6, by=0.5)
    _, metrics, status = run(**KINDS[kind])
    tolerance = 0.03 if kind == "bf16" else 1e-5
    assert metrics["total"] == pytest.approx(lowest_total(), rel=tolerance)
    number = min(history("first"), key=lambda row: row["total"])["evaluation"]
    for text in (status["reason"], status["notes"][-1]):
        assert f"the result is the image of evaluation {number:.0f}, whose loss is " in text
        assert f"{metrics['total']:.6g}, and not the last one, whose loss is" in text


@pytest.mark.parametrize(
    ("kind", "phase"), [("warm start", "warm_start"), ("coarse to fine", "half")]
)
def test_next_phase_begins_with_the_best_image(
    kind: str, phase: str, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(**KINDS[kind])
    honest = history("first")[0]["total"]
    spoil(monkeypatch, phase, after=6, by=3.0)
    _, _, status = run(**KINDS[kind])
    assert history("first")[0]["total"] < 1.5 * honest
    assert any(note.startswith(f"In the phase {phase} the result is") for note in status["notes"])


def test_last_image_is_the_result_where_it_is_the_best(run: Any) -> None:
    _, metrics, status = run(evaluations=20)
    assert metrics["total"] < lowest_total()
    assert status["kind"] == "budget"
    assert (status["reason"], status["notes"]) == ("all 20 evaluations were used", [])


def test_best_image_outlives_a_change_of_the_precision(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 the loss seems lower, and every image after the change is worse."""
    monkeypatch.setattr("pipeline.transfer.callbacks.Refinement.EVALUATIONS", 2)
    monkeypatch.setattr("pipeline.transfer.callbacks.Refinement.GAIN", 0.99)
    spoil(monkeypatch, "main", after=4, by=0.5)
    _, metrics, status = run(evaluations=9, precision="bf16")
    assert 0 < metrics["float32_evaluations"] < 9
    assert "the result is the image of evaluation 4, " in status["reason"]
    assert metrics["total"] == pytest.approx(history("first")[3]["total"], rel=0.03)


# ── a start that is the answer ──

SAME: dict[str, Any] = {"content": "chelsea", "style": "chelsea", "init": "content"}
PERFECT: dict[str, dict[str, Any]] = {
    "same picture twice": SAME,
    "same picture twice, from style": SAME | {"init": "style"},
    "content alone": {"init": "content", "style_layers": []},
    "style alone": {"init": "style", "content_layers": []},
    "own proportions": SAME | {"style_resize": "own"},
    "warm start": SAME | {"warm_start": "embedded", "size": 48},
    "coarse to fine": SAME | {"schedule": "coarse_to_fine", "size": 100},
    "line search": SAME | {"lbfgs": {"line_search_fn": "strong_wolfe"}},
    "bf16": SAME | {"precision": "bf16"},
    "early stop": SAME | {"early_stop": {}, "evaluations": 30},
    "one colour": {"content": "mine", "style": "mine", "init": "content"},
    "one colour, smoothed": SAME | {"content": "mine", "style": "mine", "variation_weight": 1.0},
    "one evaluation": SAME | {"evaluations": 1},
    "weights of any unit": SAME | {"content_weight": 1e9, "style_weight": 1e-9},
}


@pytest.mark.parametrize("kind", PERFECT)
def test_start_that_fulfils_the_loss_is_the_result(kind: str, run: Any) -> None:
    Image.new("RGB", (48, 32), (200, 90, 13)).save("mine.png")
    picture, metrics, status = run(**PERFECT[kind])
    assert (status["kind"], status["reason"]) == ("minimum", "the start fulfils the loss")
    assert picture.tobytes() == start().tobytes()
    assert metrics["total"] < 1e-9 * max(PERFECT[kind].get("content_weight", 1), 1)
    assert len({row["iteration"] for row in history("first")}) == 1


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (3, 40)])
@pytest.mark.parametrize("init", ["content", "style"])
def test_picture_a_pixel_high_fulfils_its_own_loss(
    init: str, shape: tuple[int, int], run: Any
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("mine.png")
    own = {"content": "mine", "style": "mine", "init": init, "size": None}
    layers = {"content_layers": ["conv1_2"], "style_layers": ["conv1_1"]}
    picture, _, status = run(**own, **layers)
    assert status["reason"] == "the start fulfils the loss"
    assert picture.tobytes() == pixels.tobytes()


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1)])
def test_picture_a_pixel_high_is_smoothed_without_a_mean_over_nothing(
    shape: tuple[int, int], run: Any
) -> None:
    for name, seed in (("mine", 0), ("other", 1)):
        pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{name}.png")
    own = {"content": "mine", "style": "other", "size": None, "variation_weight": 0.1}
    _, metrics, _ = run(**own, content_layers=["conv1_2"], style_layers=["conv1_1"])
    assert metrics["total"] < history("first")[0]["total"]


def test_start_without_a_gradient_is_the_result(run: Any) -> None:
    """A layer that is nowhere active: nothing changes its loss."""
    Image.new("RGB", (48, 32)).save("mine.png")
    weights, pooling = load_backbone(paths.WEIGHTS_FILE)
    weights["conv1_2.bias"] = torch.full_like(weights["conv1_2.bias"], -1e6)
    weights["conv2_1.bias"] = torch.ones_like(weights["conv2_1.bias"])
    save_weights(paths.WEIGHTS_FILE, weights, pooling=pooling)
    picture, _, status = run(
        content="mine", style="gravel", content_layers=[], style_layers=["conv1_2"], init="style"
    )
    assert status["kind"] == "minimum"
    assert picture.tobytes() == start().tobytes()


def test_minimum_so_near_the_start_that_the_picture_is_the_same_is_a_result(run: Any) -> None:
    picture, _, status = run(
        init="content",
        content_layers=["conv1_1"],
        content_weight=1e5,
        first_step=1e-5,
        evaluations=40,
    )
    assert picture.tobytes() == start().tobytes()
    assert any(
        "a minimum so near the start that the picture is the same" in n for n in status["notes"]
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"first_step": 1e-12, "evaluations": 1},
        {"first_step": 1e-12, "largest_step": 1e-12},
        {"largest_step": 1e-12, "lbfgs": {"line_search_fn": "strong_wolfe", "lr": 1e-9}},
        {"lbfgs": {"tolerance_grad": 1e6}},
        {"lbfgs": {"tolerance_change": 1e6}, "evaluations": 40},
        {"lbfgs": {"lr": 1e-12}},
        {"lbfgs": {"tolerance_grad": 1e6}, "init": "content"},
    ],
)
def test_settings_that_keep_the_image_at_its_start_are_an_error(
    settings: dict[str, Any], run: Any
) -> None:
    with pytest.raises(UserError, match=r"the image did not move: .*Give it more evaluations"):
        run(**settings)


# ── coarse phases ──


@pytest.mark.parametrize(
    ("style", "settings", "expected"),
    [
        ((200, 1600), {}, ["main"]),
        ((200, 1600), {"style_layers": []}, ["quarter", "half", "main"]),
        ((200, 1600), {"style_resize": "content"}, ["quarter", "half", "main"]),
        ((400, 1600), {}, ["half", "main"]),
        ((1600, 400), {}, ["half", "main"]),
        ((1600, 1600), {}, ["quarter", "half", "main"]),
    ],
)
def test_phases_too_small_for_a_picture_that_is_used_are_left_out(
    style: tuple[int, int],
    settings: dict[str, Any],
    expected: list[str],
    workspace: Path,
    weights_file: Path,
) -> None:
    params: Any = tiny_params(weights_file)
    params["images"]["mine"] = {"source": "mine.png"}
    params["experiments"]["first"] |= {
        "style": "mine",
        "style_resize": "own",
        "schedule": "coarse_to_fine",
        "size": 256,
        **settings,
    }
    Image.new("RGB", style[::-1]).save("mine.png")
    write_params(workspace, params)
    fetch(read_params())
    assert [phase.name for phase in phases_of(read_params().experiments["first"])] == expected
