"""Runs whose images are computed in tiles: their results, notes, progress and limits."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_params, write_params
from test_stylize import history

from pipeline import paths
from pipeline.config.params import read_params
from pipeline.config.plan import read_plan
from pipeline.errors import UserError
from pipeline.experiments.run import run_experiment
from pipeline.imaging.picture_files import read_picture
from pipeline.transfer.callbacks import ReportProgress


def run(
    weights_file: Path, watch: ReportProgress = lambda *_: None, **settings: Any
) -> list[tuple[float, float]]:
    """Runs the experiment ``first``, and returns the evaluations and losses that it reported."""
    params: Any = tiny_params(weights_file)
    params["defaults"] |= {"size": 48, "evaluations": 12, "init": "content", **settings}
    params |= {"tracking": {"mode": "disabled"}, "checkpoints": {"every": 0}}
    write_params(Path(), params)
    reports: list[tuple[float, float]] = []
    options = read_params().run_options("first")

    def report(title: str, done: float, budget: int, loss: float) -> None:
        reports.append((done, loss))
        watch(title, done, budget, loss)

    run_experiment(read_plan("first"), options, report)
    return reports


def picture() -> Any:
    return np.asarray(read_picture(paths.EXPERIMENTS / "first/image.png")).astype(int)


def test_tiled_run_has_the_losses_and_the_picture_of_an_untiled_one(
    prepared: Path, weights_file: Path
) -> None:
    run(weights_file, tile=None, precision="float32")
    expected, losses = picture(), [row["total"] for row in history("first")]
    run(weights_file, tile=16, precision="float32")
    assert [row["total"] for row in history("first")] == pytest.approx(losses, rel=1e-4)
    assert np.abs(picture() - expected).max() <= 1


def test_tiled_run_says_so_and_reports_parts_of_an_evaluation(
    prepared: Path, weights_file: Path
) -> None:
    reports = run(weights_file, tile=16)
    evaluations = [done for done, _ in reports]
    assert evaluations == sorted(evaluations)
    assert evaluations[-1] == 12
    assert len({done for done in evaluations if 5 < done < 6}) > 10
    status = json.loads((paths.EXPERIMENTS / "first/status.json").read_text())
    assert "The phase main was computed in tiles of 16 pixels" in status["notes"]


def test_small_image_and_auto_have_no_tiles(prepared: Path, weights_file: Path) -> None:
    reports = run(weights_file)
    assert all(done == int(done) for done, _ in reports)
    status = json.loads((paths.EXPERIMENTS / "first/status.json").read_text())
    assert not any("tiles" in note for note in status["notes"])


@pytest.mark.parametrize("term", ["histogram", "sliced_wasserstein"])
def test_term_that_cannot_be_tiled_is_named(term: str, prepared: Path, weights_file: Path) -> None:
    with pytest.raises(UserError, match=rf"{term} needs the positions of the whole image at once"):
        run(weights_file, tile=16, **{f"{term}_weight": 1.0})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("share", [0.2, 0.8])  # of the way: forward, back
def test_run_ends_within_an_evaluation_if_asked_to_and_goes_on(
    number: signal.Signals,
    share: float,
    prepared: Path,
    weights_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(weights_file, tile=16)
    expected, losses = picture(), history("first")
    seen: list[float] = []

    def interrupt(_: str, done: float, *__: Any) -> None:
        if done >= 5 + share:
            seen.append(done)
            os.kill(os.getpid(), number)

    with pytest.raises(SystemExit) as ended:
        run(weights_file, interrupt, tile=16)
    assert ended.value.code == 128 + number
    assert len(seen) == 1
    capsys.readouterr()
    run(weights_file, tile=16)
    assert "goes on after evaluation 5" in capsys.readouterr().out
    assert np.array_equal(picture(), expected)
    assert history("first") == losses
