"""What a command writes into params.yaml: its own lines and no other."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.config.params import read_params
from pipeline.config.presets import PAPER, vgg19_from, write_values
from pipeline.errors import UserError

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


def test_the_papers_pictures_replace_ours_line_by_line(path: Path) -> None:
    write_values(PAPER, path)
    params = read_params(path)
    assert len(lines_changed(path)) == len(PAPER)
    assert (params.backbone.architecture, params.backbone.weights) == ("vgg19", "imagenet")
    assert {each.size for each in params.experiments.values()} == {512}
    assert params.experiments["fig4-1"].content == "neckarfront"


def test_figures_follow_the_cast(path: Path) -> None:
    """Each part gets a picture of its own: whatever else an experiment shows, it names itself."""
    cast = read_params(path).cast
    text = path.read_text("utf-8")
    copies = "".join(f"  part-{part}:\n    source: data/own/{part}.png\n" for part in cast)
    path.write_text(text.replace("\nimages:\n", f"\nimages:\n{copies}", 1), encoding="utf-8")
    write_values({("cast", part): f"part-{part}" for part in cast}, path)
    shown = [(e.content, e.style) for e in read_params(path).experiments.values()]
    assert {picture for pair in shown for picture in pair} == {f"part-{part}" for part in cast}
    for letter in "bcdef":
        experiment = read_params(path).experiments[f"fig3-{letter}"]
        assert (experiment.content, experiment.style) == ("part-photograph", f"part-style_{letter}")


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ([], "weights"),
        (["papers"], "Did you mean 'paper'"),
        (["weights"], "Missing argument"),
        (["weights", "a", "b"], "unexpected extra argument"),
    ],
)
def test_unknown_preset_is_refused_with_what_there_is(arguments: list[str], answer: str) -> None:
    result = CliRunner().invoke(app, ["preset", *arguments])
    assert result.exit_code == 2
    assert answer in result.output


def test_command_writes_the_preset(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    assert CliRunner().invoke(app, ["preset", "paper"]).exit_code == 0
    assert len(lines_changed(path)) == len(PAPER)


@pytest.mark.parametrize("command", ["repro", "paper"])
def test_make_writes_given_weights_before_it_runs(command: str) -> None:
    planned = subprocess.run(
        ["make", "--dry-run", command, "WEIGHTS=my own/vgg19.pth", "JOBS=3"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    wanted = ["preset paper"] if command == "paper" else []
    wanted += ["preset weights 'my own/vgg19.pth'", "pipeline run --jobs '3'"]
    places = [planned.index(step) for step in wanted]
    assert places == sorted(places)
