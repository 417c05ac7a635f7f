"""What a command writes into params.yaml: its own lines and no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import REPOSITORY

from pipeline.errors import UserError
from pipeline.params import read_params
from pipeline.presets import PAPER, vgg19_from, write_values

SHIPPED = REPOSITORY / "params.yaml"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(SHIPPED.read_text("utf-8"), encoding="utf-8")
    return path


def lines_changed(path: Path) -> list[str]:
    before, after = (file.read_text("utf-8").split("\n") for file in (SHIPPED, path))
    return [line for line, other in zip(before, after, strict=True) if line != other]


def test_given_weights_change_their_line_and_no_other(path: Path) -> None:
    weights = path.parent / 'it\'s a "network".pth'
    weights.touch()
    write_values(vgg19_from(weights), path)
    assert read_params(path).backbone.weights == str(weights)
    assert lines_changed(path) == ["  architecture: vgg19-small", "  weights: embedded"]


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file of weights"):
        vgg19_from(tmp_path / "nothing.pth")


def test_weights_replace_a_value_that_dvc_broke_into_two_lines(path: Path) -> None:
    weights = path.parent / "vgg19.pth"
    weights.touch()
    broken = path.read_text("utf-8").replace("weights: embedded", "weights: \n    /a/long/path", 1)
    path.write_text(broken, encoding="utf-8")
    write_values(vgg19_from(weights), path)
    assert read_params(path).backbone.weights == str(weights)


def test_missing_line_is_named_and_nothing_written(path: Path) -> None:
    path.write_text("cast:\n  painting: glass\n", encoding="utf-8")
    with pytest.raises(UserError, match="no line `photograph:` under `cast:`"):
        write_values({("cast", "painting"): "ihc", ("cast", "photograph"): "coffee"}, path)
    assert "glass" in path.read_text("utf-8")


def test_the_papers_pictures_reach_every_figure(path: Path) -> None:
    before = read_params(path)
    write_values(PAPER, path)
    after = read_params(path)
    assert len(lines_changed(path)) == len(PAPER)
    assert (after.backbone.architecture, after.backbone.weights) == ("vgg19", "imagenet")
    assert {each.size for each in after.experiments.values()} == {512}
    for name, experiment in before.experiments.items():
        for role in ("content", "style"):
            part = next(p for p, image in before.cast.items() if image == getattr(experiment, role))
            if part in ("photograph", "painting", "abstract"):
                assert getattr(after.experiments[name], role) == after.cast[part]


def test_every_experiment_takes_its_pictures_from_the_cast() -> None:
    params = read_params(SHIPPED)
    for experiment in params.experiments.values():
        assert {experiment.content, experiment.style} <= set(params.cast.values())
