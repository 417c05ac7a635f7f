"""The comparison of presets: equal size and work for all, ranks, and intervals."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import presets
from benchmarks.presets import DEFAULT, PAIRS, PRESETS, params_of, shared_evaluations, tasks
from benchmarks.ranking import interval, ranking, ranks, resampled, tables
from pipeline.config.edits.tool_presets import preset
from pipeline.errors import UserError
from pipeline.experiments.request import Request, to_params


@pytest.fixture
def arguments(tmp_path: Path) -> argparse.Namespace:
    options = {"size": 256, "evaluations": 200, "precision": "float32"}
    return argparse.Namespace(weights=None, convention="torchvision", folder=tmp_path, **options)


@pytest.mark.parametrize(
    ("settings", "total", "shares"),
    [
        ({"evaluations": 500}, 200, [200]),
        ({"sizes": [{"size": 128, "evaluations": 500}], "evaluations": 200}, 200, [143, 57]),
        ({"sizes": [{"size": 9, "evaluations": 1}] * 2, "evaluations": 1}, 200, [67, 66, 67]),
    ],
)
def test_phases_share_the_evaluations_in_proportion(
    settings: dict[str, Any], total: int, shares: list[int]
) -> None:
    shared = shared_evaluations(settings, total)
    counts = [phase["evaluations"] for phase in shared["sizes"]] + [shared["evaluations"]]
    assert counts == shares
    assert sum(counts) == total
    assert [phase["size"] for phase in shared["sizes"]] == [
        phase["size"] for phase in settings.get("sizes", [])
    ]


def test_phase_without_evaluations_is_refused() -> None:
    settings = {"sizes": [{"size": 64, "evaluations": 1}], "evaluations": 1000}
    with pytest.raises(UserError, match="2 phases cannot share them"):
        shared_evaluations(settings, 20)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_same_size_work_and_network_and_keep_their_losses(
    name: str, arguments: argparse.Namespace
) -> None:
    params = params_of(name, PAIRS[0], arguments)
    (experiment,) = params.experiments.values()
    assert (experiment.size, experiment.size_edge, experiment.precision) == (256, "long", "float32")
    assert sum(phase.evaluations for phase in experiment.sizes) + experiment.evaluations == 200
    assert (params.backbone.architecture, params.backbone.weights) == ("vgg19-small", "embedded")
    if name == DEFAULT:
        other = to_params(Request("a.png", ["b.png"]), vgg19_is_here=False)
        (own,) = other.experiments.values()
        assert params.backbone == other.backbone
        differing = {"content", "style", "size", "precision"}
        assert experiment.model_dump(exclude=differing) == own.model_dump(exclude=differing)
    else:
        sections = preset(name)
        assert params.backbone.pooling == sections["backbone"]["pooling"]
        assert params.backbone.rescale == sections["backbone"]["rescale"]
        assert experiment.style_weight == sections["defaults"]["style_weight"]


def test_file_of_vgg19_replaces_the_network_of_every_preset(arguments: argparse.Namespace) -> None:
    arguments.weights, arguments.convention = "vgg19.pth", "caffe"
    for name in PRESETS:
        backbone = params_of(name, PAIRS[0], arguments).backbone
        assert (backbone.architecture, backbone.convention) == ("vgg19", "caffe")
        assert Path(backbone.weights).is_absolute()


def test_files_differ_with_whatever_decides_the_picture(arguments: argparse.Namespace) -> None:
    before = {task.file for task in tasks(arguments)}
    assert len(before) == len(PAIRS) * len(PRESETS)
    arguments.evaluations = 100
    assert before.isdisjoint(task.file for task in tasks(arguments))


def test_stopped_run_leaves_no_picture_that_is_taken_for_a_result(
    arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tasks(arguments)[0]

    def stopped(params: object, out: Path) -> None:
        out.write_bytes(b"the best image so far")
        raise SystemExit(143)

    monkeypatch.setattr(presets, "compute_picture", stopped)
    with pytest.raises(SystemExit):
        presets._compute(task)
    assert not task.file.exists()
    monkeypatch.setattr(presets, "compute_picture", lambda params, out: out.write_bytes(b"whole"))
    assert presets._compute(task) == task.file.name
    assert task.file.read_bytes() == b"whole"


def test_ranks_share_the_mean_where_values_are_equal() -> None:
    table = np.array([[1.0, 5.0], [3.0, 5.0], [2.0, 5.0], [3.0, 1.0]])
    assert ranks(table).tolist() == [[1, 3], [3.5, 3], [2, 3], [3.5, 1]]


def test_pairs_are_resampled_within_their_style() -> None:
    samples = resampled(["a", "b", "a", "b", "b"])
    assert set(samples[:, :2].ravel()) == {0, 2}
    assert set(samples[:, 2:].ravel()) == {1, 3, 4}
    assert (samples == resampled(["a", "b", "a", "b", "b"])).all()


def test_interval_is_that_of_the_normal_distribution_for_many_pairs() -> None:
    row = np.random.default_rng(3).normal(5.0, 2.0, 400)
    low, high = interval(row, resampled(["a"] * 400))
    half = 1.96 * row.std() / 20
    assert (low, high) == pytest.approx((row.mean() - half, row.mean() + half), abs=0.1 * half)


def measures_of(distance: float) -> dict[str, float]:
    return {"style_distance": distance, "structure": -distance}


def test_first_rank_is_the_closest_by_distances_and_by_similarity() -> None:
    pairs = ["cat × oil", "dog × oil", "cat × ink", "dog × ink"]
    distances = {"near": (1, 2, 1, 4), "far": (3, 3, 3, 3)}
    values = {
        name: {pair: measures_of(value) for pair, value in zip(pairs, row, strict=True)}
        for name, row in distances.items()
    }
    result = ranking(values)
    assert list(result) == ["all", "oil", "ink"]
    for measure in ("style_distance", "structure"):
        assert result["oil"][measure]["near"]["rank"] == 1
        assert result["oil"][measure]["near"]["rank_interval"] == [1, 1]
        assert result["all"][measure]["near"]["rank"] == 1.25
        assert result["ink"][measure]["far"]["rank_interval"] == [1, 2]
    assert result["all"]["style_distance"]["near"]["mean"] == 2
    hardware = {"date": "2026-01-01", "device": "a CPU", "torch": "2"}
    run = SimpleNamespace(hardware=hardware, precision="float32", size=256, evaluations=200)
    written = tables({"vgg19-small": {**vars(run), "ranking": result}})
    assert "| `near` | 1.25 (1.00–1.50) | 1.25 (1.00–1.50) |" in written
