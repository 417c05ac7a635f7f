"""What a command writes into params.yaml: its own lines and no other."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.config.edits.presets import PAPER, vgg19_from, write_values
from pipeline.config.params import read_params
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


def test_missing_section_is_named(path: Path) -> None:
    path.write_text("cast: [a, b]\n", encoding="utf-8")
    with pytest.raises(UserError, match="no line `painting:` under `cast:`"):
        write_values({("cast", "painting"): "ihc"}, path)


def test_file_that_is_not_yaml_is_named_and_left(path: Path) -> None:
    path.write_text("cast: {a: [}\n", encoding="utf-8")
    with pytest.raises(UserError, match="is not YAML"):
        write_values({("cast", "a"): "ihc"}, path)
    assert path.read_text("utf-8") == "cast: {a: [}\n"


@pytest.mark.parametrize("value", [1e-5, 1e300, 0.1, 3, True, None, "null", "a b", "pillow-2.6"])
def test_every_value_is_read_as_what_was_written(value: object, path: Path) -> None:
    written = {"layers": {"conv1_1": value}, "list": [value, {"size": value}], "alone": value}
    path.write_text("a:\n  layers: 1 # one\n  list: 2\n  alone:\nb: 3\n", encoding="utf-8")
    write_values({("a", key): each for key, each in written.items()}, path)
    for read in (yaml.safe_load, YAML(typ="safe", pure=True).load):
        assert read(path.read_text("utf-8")) == {"a": written, "b": 3}
    assert " # one\n" in path.read_text("utf-8")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[x, y]", "[1]"),
        ("\n    - x\n    # why\n    - {y: z}", "[1]"),
        ("\n  - x\n  - y  # last", "[1]  # last"),
        ("\n    x: 1\n    y:\n      - 2", "[1]"),
        ("[x,\n    y]  # two", "[1]  # two"),
        ("&anchor [x]", "&anchor [1]"),
        ("*other  # alias", "[1]  # alias"),
        ('"a: # b"  # text', "[1]  # text"),
        (">-\n    folded\n    text", "[1]"),
        ("", "[1]"),
    ],
)
def test_value_of_any_style_is_replaced_and_what_is_around_it_stays(
    before: str, after: str, path: Path
) -> None:
    around = "o: &other 5\na:\n  # above\n  key: {}\n  # below\n  next: 2\n"
    path.write_text(around.replace("{}", before), encoding="utf-8")
    write_values({("a", "key"): [1]}, path)
    assert path.read_text("utf-8").replace("] \n", "]\n") == around.replace("{}", after)


def test_keys_of_a_mapping_are_replaced_line_by_line(path: Path) -> None:
    write_values({("defaults", "lbfgs"): {"history_size": 7, "line_search_fn": None}}, path)
    assert lines_changed(path) == ["    history_size: 20"]
    write_values({("defaults", "lbfgs"): {"history_size": 7, "new": 1}}, path)
    assert "  lbfgs: {history_size: 7, new: 1}\n" in path.read_text("utf-8")


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
    experiments = read_params(path).experiments
    of_the_paper = [e for name, e in experiments.items() if not name.startswith("controls-")]
    shown = {picture for experiment in of_the_paper for picture in experiment.images.values()}
    assert shown == {f"part-{part}" for part in cast}
    for letter in "bcdef":
        experiment = experiments[f"fig3-{letter}"]
        assert (experiment.content, experiment.images["style"]) == (
            "part-photograph",
            f"part-style_{letter}",
        )


def test_figures_follow_the_paper_in_a_file_that_dvc_wrote(path: Path) -> None:
    apply_overrides(path, ["cast.photograph=coffee", "cast.style_b=glass"])
    experiments = read_params(path).experiments
    assert tuple(experiments["fig3-b"].images.values()) == ("coffee", "glass")
    assert experiments["fig6-noise-0"].content == "coffee"
    write_values(PAPER, path)
    after = read_params(path).experiments
    assert tuple(after["fig3-b"].images.values()) == ("neckarfront", "shipwreck")
    assert after["fig4-1"].images == {"content": "neckarfront", "style": "composition_vii"}


def test_shipped_file_has_nothing_that_dvc_would_drop() -> None:
    """An anchor is gone when DVC has written the file, and an edit at its place changes nothing."""
    events = yaml.parse(SHIPPED.read_text("utf-8"))
    assert not [event for event in events if getattr(event, "anchor", None)]


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


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder with the Makefile and a ``python`` that prints its arguments, one in a line."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(REPOSITORY / name, tmp_path / name)
    for name in (".venv/bin/python", "it's my/python"):
        python = tmp_path / name
        python.parent.mkdir(parents=True)
        python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
        python.chmod(0o755)
    (tmp_path / ".venv/installed").touch()
    return tmp_path


def arguments_in(folder: Path, *words: str, **variables: str) -> list[str]:
    """Returns the arguments of all calls of Python by a make."""
    done = subprocess.run(
        ["make", "--silent", "--no-print-directory", *words],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    "weights",
    [
        "/data/it's/v.pth",
        "my own/vgg19.pth",
        'a "b".pth',
        "/a/$HOME/$$b/$(shell touch made)/${WEIGHTS}.pth",
        "`touch made`.pth",
        "a#b.pth",
        "-v.pth",
        "~/v.pth",
        "a;touch made;\\",
        "a,b)%=*.pth",
        "猫.pth",
    ],
)
@pytest.mark.parametrize("command", ["repro", "paper"])
@pytest.mark.parametrize("given_by", ["argument", "environment"])
def test_make_hands_on_any_path_and_writes_it_before_it_runs(
    command: str, weights: str, given_by: str, bare: Path
) -> None:
    variables = {"WEIGHTS": weights, "JOBS": "3"}
    words = [f"{name}={value}" for name, value in variables.items()]
    preset = ["-m", "pipeline", "preset"]
    expected = [*preset, "paper"] if command == "paper" else []
    expected += [*preset, "weights", "--", weights, "-m", "pipeline", "run", "--jobs=3"]
    if given_by == "argument":
        assert arguments_in(bare, command, *words) == expected
    else:
        assert arguments_in(bare, command, **variables) == expected
    assert not (bare / "made").exists()


def test_make_without_variables_leaves_their_options_out(bare: Path) -> None:
    assert arguments_in(bare, "repro") == ["-m", "pipeline", "run"]


def test_make_takes_a_python_at_any_path(bare: Path) -> None:
    (bare / ".venv/installed").unlink()
    called = arguments_in(bare, "install", f"PYTHON={bare}/it's my/python")
    assert called[:1] == ["-c"]
    assert "venv" in called


@pytest.mark.parametrize("path", ["~no-such-user/v.pth", "-v.pth", "a#b $HOME.pth"])
def test_weights_of_an_odd_path_are_taken(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(SHIPPED, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).touch()
    assert CliRunner().invoke(app, ["preset", "weights", "--", path]).exit_code == 0
    assert read_params().backbone.weights == str(tmp_path / path)


@pytest.mark.parametrize("name", ["a\u2028b.pth", "\udcff.pth", "a${b}.pth", "a\rb.pth"])
def test_weights_of_a_name_that_params_cannot_hold_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has what params\.yaml cannot hold"):
        vgg19_from(tmp_path / name)
