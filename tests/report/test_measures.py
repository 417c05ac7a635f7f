"""Measurements of figures: known pictures, known numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from pipeline import paths
from pipeline.config.schema import Figure
from pipeline.experiments.results import ExperimentRecord, Results
from pipeline.imaging.tensors import resize, to_picture, to_tensor
from pipeline.report.figure_measures import (
    MEASURES,
    measure_distances,
    measure_reconstructions,
    measure_starts,
    measure_trade_off,
    plot_distances,
    unsurpassed,
)

PLOT = Path("plot.svg")


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def record(
    name: str, pixels: Any, losses: dict[str, float] | None = None, **settings: Any
) -> ExperimentRecord:
    """Returns an experiment with a content loss, whose result has the (H, W) pixels given."""
    image = Path(f"{name}.png")
    Image.fromarray(np.asarray(pixels, np.uint8)).convert("RGB").save(image)
    results = Results(
        metrics=settings.pop("metrics", {"structure": 0.5}),
        counts={},
        losses=losses or {},
        provenance={},
        history={"content": [8.0, 2.0]},
        notes=[],
        image=image,
        intermediates={},
    )
    settings = {"content": "subject", "init": "noise", "seed": 0, **settings}
    return ExperimentRecord(name, settings, frozenset(), {"content": "subject"}, results)


def uniform(value: int) -> Any:
    return np.full((20, 30), value)


def test_every_measure_that_a_figure_may_name_exists() -> None:
    names = get_args(get_args(Figure.model_fields["measure"].annotation)[0])
    assert set(names) == set(MEASURES)


def reconstruction(result: Any, target: Image.Image, **settings: Any) -> list[str]:
    """Returns the row of a result as the reconstruction of a picture."""
    file = paths.picture("subject")
    file.parent.mkdir(parents=True, exist_ok=True)
    target.save(file)
    losses = settings.pop("losses", {"saved_content": 2.0})
    experiment = record("one", result, losses, content_layers={"conv1_2": 1.0}, **settings)
    return measure_reconstructions([experiment], PLOT).rows[0]


def test_reconstruction_of_the_picture_itself_is_perfect() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30)).astype(np.uint8)
    picture = Image.fromarray(pixels).convert("RGB")
    assert reconstruction(pixels, picture) == ["conv1_2", "25 %", "0.000", "0.500"]
    assert float(reconstruction(255 - pixels, picture)[2]) > 0.5
    assert PLOT.is_file()


def test_reconstruction_is_compared_at_its_own_size() -> None:
    assert reconstruction(uniform(0), Image.new("RGB", (60, 40), (51, 51, 51)))[2] == "0.200"


def test_reconstruction_after_a_warm_start_is_measured_against_the_start() -> None:
    losses = {"saved_content": 2.0, "start_content": 16.0}
    assert reconstruction(uniform(0), Image.new("RGB", (30, 20)), losses=losses)[1] == "12.5 %"


def test_reconstruction_that_starts_from_its_goal_has_no_relative_loss() -> None:
    losses = {"saved_content": 0.5, "start_content": 0.0}
    assert reconstruction(uniform(0), Image.new("RGB", (30, 20)), losses=losses)[1] == "–"


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("resampling", ["bicubic", "bilinear"])
def test_reconstruction_is_compared_with_the_picture_as_it_was_resized(
    resampling: Any, antialias: bool
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 120, 3)).astype(np.uint8)
    picture = Image.fromarray(noise)
    target = to_picture(resize(to_tensor(picture), (20, 30), resampling, antialias))
    row = reconstruction(target, picture, resampling=resampling, antialias=antialias)
    others = [
        reconstruction(target, picture, resampling=other, antialias=sharp)
        for other in ("bicubic", "bilinear")
        for sharp in (False, True)
        if (other, sharp) != (resampling, antialias)
    ]
    # The bicubic kernels of torch and Pillow differ a little where nothing is antialiased.
    assert float(row[2]) < 0.03
    assert all(float(other[2]) > 2 * float(row[2]) for other in others)


def test_reconstruction_of_a_picture_resized_as_by_pillow_2_6_has_no_error() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 120, 3)).astype(np.uint8)
    picture = Image.fromarray(noise)
    target = to_picture(resize(to_tensor(picture), (20, 30), "pillow-2.6", antialias=False))
    row = reconstruction(target, picture, resampling="pillow-2.6", antialias=False)
    assert row[2] == "0.000"


def test_trade_off_takes_the_weights_out_of_the_losses() -> None:
    records = [
        record(
            f"ratio-{ratio}",
            uniform(0),
            {"saved_content": ratio * 3.0, "saved_style": 2.0 * 0.5},
            metrics={"content_distance": ratio, "style_distance": 0.25},
            content_weight=ratio,
            style_weight=2.0,
        )
        for ratio in (0.02, 2.0)
    ]
    assert measure_trade_off(records, PLOT).rows == [
        ["0.01", "3", "0.5", "0.02", "0.25"],
        ["1", "3", "0.5", "2", "0.25"],
    ]
    assert ">0.01<" in PLOT.read_text("utf-8")  # words stay words


def test_starts_tells_noises_from_a_repeated_run() -> None:
    records = [
        record("noise-0", uniform(0), seed=0),
        record("noise-1", uniform(51), seed=1),
        record("content", uniform(102), init="content"),
        record("content-again", uniform(102), init="content"),
    ]
    measured = measure_starts(records, PLOT)
    assert measured.columns == ["", "noise 0", "noise 1", "content", "content, repeated"]
    assert measured.rows[1] == ["noise 1", "0.2000", "0.0000", "0.2000", "0.2000"]
    assert "Two noises: 0.2000 to 0.2000." in measured.note
    assert measured.note.endswith("Two runs with equal settings: at most 0.")


def test_front_has_the_points_that_none_surpasses() -> None:
    points = [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0), (2.0, 2.0), (2.0, 2.5), (3.0, 3.0)]
    assert unsurpassed(points) == [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]
    assert unsurpassed([(1.0, 1.0)] * 2) == [(1.0, 1.0)]


def test_distances_are_plotted_with_the_names_that_tell_them_apart() -> None:
    records = [
        record(
            f"ratio-{number}",
            uniform(0),
            metrics={"content_distance": 1.0 / number, "style_distance": number},
        )
        for number in (1, 2, 30)
    ]
    plot_distances(records, PLOT)
    text = PLOT.read_text("utf-8")
    assert all(f">{label}<" in text for label in ("1", "30", "content distance", "style distance"))
    assert "ratio" not in text


def test_all_measures_are_tabulated() -> None:
    metrics = {"content_distance": 0.12345, "style_distance": 2.0, "structure": 0.5, "total": 9.0}
    measured = measure_distances([record("one", uniform(0), metrics=metrics)], PLOT)
    assert measured.columns == ["experiment", "content distance", "style distance", "structure"]
    assert measured.rows == [["one", "0.1235", "2", "0.5"]]
    assert PLOT.is_file()


def test_plots_have_the_same_bytes_twice() -> None:
    records = [record("one", uniform(0)), record("two", uniform(9), seed=1)]
    measure_starts(records, PLOT)
    before = PLOT.read_bytes()
    measure_starts(records, PLOT)
    assert PLOT.read_bytes() == before
