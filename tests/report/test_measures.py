"""What the report measures of a figure: known pictures, known numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from pipeline import paths
from pipeline.config.schema import Figure
from pipeline.experiments.results import Cell, Results, as_text, variations
from pipeline.imaging.tensors import resize, to_picture, to_tensor
from pipeline.report.measures import MEASURES, reconstruction, starts, trade_off
from pipeline.report.plots import loss_curves, trade_off_curve

PLOT = Path("plot.svg")


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def cell(name: str, pixels: Any, metrics: dict[str, float] | None = None, **settings: Any) -> Cell:
    """Returns a cell whose result has the (H, W) pixels given."""
    image = Path(f"{name}.png")
    Image.fromarray(np.asarray(pixels, np.uint8)).convert("RGB").save(image)
    history = {"content": [8.0, 2.0], "style": [4.0, 1.0]}
    results = Results(metrics or {}, {}, history, [], image, {}, {})
    given = {"content": "subject", "init": "noise", "seed": 0, **settings}
    return Cell(name, given, frozenset(), ("content", "style"), results)


def flat(value: int) -> Any:
    return np.full((20, 30), value)


def test_every_measure_that_a_figure_may_name_exists() -> None:
    names = get_args(get_args(Figure.model_fields["measure"].annotation)[0])
    assert set(names) == set(MEASURES)


def test_reconstruction_of_the_picture_itself_is_perfect() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30))
    cells = []
    for name, found in (("same", pixels), ("inverted", 255 - pixels)):
        cells.append(cell(name, found, {"saved_content": 2.0}, content_layers={"conv1_2": 1.0}))
    target = paths.picture("subject")
    target.parent.mkdir(parents=True)
    Image.fromarray(pixels.astype(np.uint8)).convert("RGB").save(target)
    measured = reconstruction(cells, PLOT)
    assert measured.rows[0] == ["conv1_2", "25 %", "0.000", "1.000"]
    assert float(measured.rows[1][2]) > 0.5
    assert float(measured.rows[1][3]) < 0
    assert PLOT.is_file()


def test_reconstruction_is_compared_at_its_own_size() -> None:
    target = paths.picture("subject")
    target.parent.mkdir(parents=True)
    Image.new("RGB", (60, 40), (51, 51, 51)).save(target)
    small = cell("small", flat(0), {"saved_content": 1.0}, content_layers={"conv1_2": 1.0})
    assert reconstruction([small, small], PLOT).rows[0][2] == "0.200"


def reconstructed(name: str, found: Any, picture: Image.Image, **settings: Any) -> list[str]:
    """Returns the row of a picture that was found in place of another."""
    target = paths.picture("subject")
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.save(target)
    layers = {"content_layers": {"conv1_2": 1.0}}
    metrics = {"saved_content": 2.0, "start_content": 16.0}
    return reconstruction([cell(name, found, metrics, **layers, **settings)], PLOT).rows[0]


def test_reconstruction_after_a_warm_start_is_measured_against_the_start() -> None:
    assert reconstructed("warm", flat(0), Image.new("RGB", (30, 20)))[1] == "12.5 %"


def test_reconstruction_smaller_than_the_window_of_ssim_has_none() -> None:
    row = reconstructed("tiny", np.zeros((10, 30)), Image.new("RGB", (30, 10)))
    assert row[2:] == ["0.000", "–"]
    assert PLOT.is_file()


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("resampling", ["bicubic", "bilinear"])
def test_reconstruction_is_compared_with_the_picture_as_it_was_resized(
    resampling: Any, antialias: bool
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 120, 3)).astype(np.uint8)
    picture = Image.fromarray(noise)
    target = to_picture(resize(to_tensor(picture), (20, 30), resampling, antialias))
    row = reconstructed("a", target, picture, resampling=resampling, antialias=antialias)
    others = [
        reconstructed(f"{other}-{sharp}", target, picture, resampling=other, antialias=sharp)
        for other in ("bicubic", "bilinear")
        for sharp in (False, True)
        if (other, sharp) != (resampling, antialias)
    ]
    # The bicubic kernels of torch and Pillow differ a little where nothing is antialiased.
    assert float(row[2]) < 0.03
    assert all(float(other[2]) > 2 * float(row[2]) for other in others)


def test_trade_off_takes_the_weights_out_of_the_losses() -> None:
    cells = [
        cell(
            f"ratio-{ratio}",
            flat(0),
            {"saved_content": ratio * 3.0, "saved_style": 2.0 * 0.5},
            content_weight=ratio,
            style_weight=2.0,
        )
        for ratio in (0.02, 2.0)
    ]
    assert trade_off(cells, PLOT).rows == [["0.01", "3", "0.5"], ["1", "3", "0.5"]]
    assert PLOT.is_file()


def test_starts_tells_noises_from_a_repeated_run() -> None:
    cells = [
        cell("noise-0", flat(0), seed=0),
        cell("noise-1", flat(51), seed=1),
        cell("content", flat(102), init="content"),
        cell("content-again", flat(102), init="content"),
    ]
    measured = starts(cells, PLOT)
    assert measured.columns == ["", "noise 0", "noise 1", "content", "content, again"]
    assert measured.rows[1] == ["noise 1", "0.2000", "0.0000", "0.2000", "0.2000"]
    assert "Between two noises 0.2000 to 0.2000." in measured.note
    assert measured.note.endswith("Between two runs with the same settings 0.")


def test_plots_have_the_same_bytes_twice() -> None:
    cells = [cell("one", flat(0)), cell("two", flat(9), seed=1)]
    starts(cells, PLOT)
    before = PLOT.read_bytes()
    starts(cells, PLOT)
    assert PLOT.read_bytes() == before


def test_plots_keep_their_words_while_their_paths_are_rounded() -> None:
    trade_off_curve([1e-4, 1e-3], [3.21987654, 1.0], [1.0, 2.0], PLOT)
    picture = PLOT.read_text("utf-8")
    assert ">0.0001<" in picture
    assert ">0.001<" in picture
    assert not re.search(r' d="[^"]*\.\d{3}', picture)


def test_curves_of_a_run_without_layers_are_drawn() -> None:
    curve = [2.0, 1.0]
    zero = [0.0, 0.0]
    history = {"evaluation": [1.0, 2.0], "total": curve, "variation": curve}
    loss_curves({**history, "content": zero, "style": zero, "out_of_range": zero}, PLOT)
    assert PLOT.is_file()


def test_variations_are_the_settings_that_are_not_the_same() -> None:
    one = cell("one", flat(0), style="ihc", layers=["conv1_1"])
    two = replace(one, name="two", settings={**one.settings, "style": "glass"})
    assert variations([one, two]) == {"one": {"style": "ihc"}, "two": {"style": "glass"}}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"conv1_1": 0.5, "conv2_1": 0.5}, "conv1_1, conv2_1"),
        ({"conv1_1": 0.5, "conv2_1": 1.0}, "conv1_1 0.5, conv2_1 1"),
        ({"conv4_2": 2.0}, "conv4_2 2"),
        ({}, "none"),
        ({"lr": 1.0, "line_search_fn": None}, "lr 1, line_search_fn none"),
        ([1, 10], "1, 10"),
        (None, "none"),
        (0.0001, "0.0001"),
        (True, "True"),
    ],
)
def test_settings_read_as_people_write_them(value: Any, text: str) -> None:
    assert as_text(value) == text
