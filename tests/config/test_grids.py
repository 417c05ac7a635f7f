"""Grids: cells are experiments named by their values, and every mistake is a sentence."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, tiny_params

from pipeline import paths
from pipeline.config.axes import labelled
from pipeline.config.edits.additions import add_grid
from pipeline.config.grids import update_cells_file
from pipeline.config.params import read_params, validated
from pipeline.config.schema import Params
from pipeline.errors import UserError

RATIOS = {"content_weight": [0.1, 1, 3], "style": ["glass", "dots"], "seed": "0..1"}


def with_grids(*changes: Callable[[dict[str, Any]], object], **grids: dict[str, Any]) -> Params:
    """Returns the parameters of two experiments with grids over the first, after some changes."""
    content = tiny_params(Path("vgg.pth"))
    content["grids"] = {name: {"base": "first", "over": over} for name, over in grids.items()}
    for change in changes:
        change(content)
    return validated(content, "params.yaml")


def cells(params: Params) -> list[str]:
    return list(params.grid_of)


def test_cell_has_the_settings_of_its_base_and_its_values() -> None:
    params = with_grids(ratios=RATIOS)
    assert len(cells(params)) == 12
    cell, base = params.experiments["ratios-0.1-dots-1"], params.experiments["first"]
    assert cell.style[0].image == "dots"
    assert base.model_copy(update={"content_weight": 0.1, "style": cell.style, "seed": 1}) == cell


def test_names_are_made_of_values_in_the_order_of_the_axes() -> None:
    assert cells(with_grids(ratios=RATIOS))[:5] == [
        "ratios-0.1-glass-0",
        "ratios-0.1-glass-1",
        "ratios-0.1-dots-0",
        "ratios-0.1-dots-1",
        "ratios-1-glass-0",
    ]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([1.0, 0.30000000000000004], ["1", "0.30000000000000004"]),
        ([1e-5, 1e16], ["1e-05", "1e16"]),
        ("-1..1", ["-1", "0", "1"]),
        ("3..3", ["3"]),
        ([None, True], ["null", "true"]),
        ({"shallow": ["conv1_1"], 2: ["conv2_1"]}, ["shallow", "2"]),
    ],
)
def test_label_is_the_value_as_yaml_writes_it(values: Any, labels: list[str]) -> None:
    assert list(labelled(values)) == labels


def test_other_values_leave_the_other_cells_as_they_are() -> None:
    before = with_grids(ratios=RATIOS)
    axes = {"content_weight": [9, 3, 0.1], "style": ["dots", "glass"], "seed": "1..4"}
    after = with_grids(ratios=axes)
    common = set(cells(before)) & set(cells(after))
    assert len(common) == 4
    assert all(before.experiments[cell] == after.experiments[cell] for cell in common)


def test_axis_of_lists_has_labels_and_a_dot_leads_into_a_section() -> None:
    layers = {"shallow": ["conv1_1"], "deep": ["conv2_1"]}
    params = with_grids(g={"style_layers": layers, "lbfgs.history_size": [5, 7], "lbfgs.lr": [0.5]})
    cell = params.experiments["g-deep-7-0.5"]
    assert cell.style_layers == {"conv2_1": 1.0}  # type: ignore[attr-defined]
    assert (cell.lbfgs.history_size, cell.lbfgs.lr) == (7, 0.5)
    assert cell.lbfgs.scaling == params.defaults.lbfgs.scaling


def test_role_of_the_cast_stands_for_its_picture_in_a_cell_too() -> None:
    params = with_grids(lambda p: p.update(cast={"warm": "coffee"}), g={"style": ["warm"]})
    assert params.experiments["g-warm"].style[0].image == "coffee"


def test_grid_is_a_figure_with_rows_and_columns_from_its_axes() -> None:
    params = with_grids(
        lambda p: p["grids"]["pairs"].update(title="All", caption="Why."),
        one={"seed": "0..2"},
        pairs={"style": ["glass", "dots"], "seed": "0..2"},
        ratios=RATIOS,
    )
    assert list(params.figures) == ["one", "pairs", "ratios", "both"]
    one, pairs, ratios = (params.figures[name] for name in ("one", "pairs", "ratios"))
    assert one.rows == [["one-0", "one-1", "one-2"]]
    assert (one.title, one.row_titles) == ("one", [])
    assert one.column_titles == ["seed 0", "seed 1", "seed 2"]
    assert (pairs.title, pairs.caption) == ("All", "Why.")
    assert pairs.row_titles == ["style glass", "style dots"]
    assert pairs.rows[1] == ["pairs-dots-0", "pairs-dots-1", "pairs-dots-2"]
    assert ratios.row_titles[1] == "content_weight 0.1, style dots"
    assert [len(row) for row in ratios.rows] == [2] * 6


def test_long_axis_is_wrapped_and_a_large_grid_makes_several_figures() -> None:
    params = with_grids(large={"content_weight": [1, 2], "seed": "0..449"})
    figures = [params.figures[name] for name in ("large", "large-2", "large-3")]
    assert [figure.title for figure in figures] == [f"large ({n} of 3)" for n in (1, 2, 3)]
    assert [cell for figure in figures for row in figure.rows for cell in row] == cells(params)
    assert all(len(row) <= 20 for figure in figures for row in figure.rows)
    assert figures[0].column_titles == []
    assert figures[0].row_titles[0] == "content_weight 1, seed 0 to 19"
    assert figures[0].row_titles[19] == "content_weight 1, seed 380 to 399"
    assert {len(row) for figure in figures for row in figure.rows} == {20, 10}
    assert params.run_options("large-2-449").group == "large"


def test_cells_of_a_grid_are_one_group_also_where_a_figure_shows_them() -> None:
    params = with_grids(
        lambda p: p["figures"]["both"].update(rows=[["first", "ratios-0.1-glass-0"]]),
        ratios=RATIOS,
    )
    assert {params.run_options(cell).group for cell in cells(params)} == {"ratios"}
    assert params.run_options("first").group == "both"


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"seed": "5..1"}, "over.seed: '5..1': a range begins with its smallest number. Write 1..5"),
    ({"seed": "0..x"}, "over.seed: '0..x': an axis is a list of values, a range of whole numbers"),
    ({"seed": 3}, "over.seed: 3: an axis is a list of values"),
    ({"seed": []}, "over.seed: []: an axis without values makes a grid without cells. Add"),
    ({}, "over: a grid without axes has no cells. Add one"),
    ({"seed": "0..99999"}, "over.seed: '0..99999': 100,000 values, but all grids together have up"),
    ({"contnet_weight": [1, 2]}, "over.contnet_weight: unknown key. Did you mean 'content_weight'"),
    ({"lbfgs.histry": [1, 2]}, "over.lbfgs.histry: unknown key. Did you mean 'history_size'"),
    ({"content_weight": [1, 1.0]}, "over.content_weight: [1, 1.0]: 1 and 1.0 give their cells one"),
    ({"style_layers": {"A": [], "a": []}}, "over.style_layers: 'A' and 'a' give their cells one"),
    ({"style_layers": [["conv1_1"]]}, "['conv1_1'] gives no name to a cell, which has letters"),
    ({"style_layers": {"groß": []}}, "'groß' gives no name to a cell, which has letters, digits, "),
    ({"style_layers": {"groß": []}}, "'_' and '.'. Use another label"),
    ({"lbfgs": {"history_size": [5, 20]}}, "over: lbfgs is a section, and [5, 20] is the value of"),
    ({"lbfgs": {"history_size": [5, 20]}}, "such as lbfgs.history_size if history_size is one"),
    (RATIOS | {"seed": [0, -1]}, "over.seed: -1: Input should be greater than or equal to 0"),
    (RATIOS | {"style": ["glas"]}, "over.style: no image 'glas' in the catalogue. Did you mean"),
    (
        {"content_weight": [0], "style_weight": [0, 1], "seed": "0..2"},
        "g, cell g-0-0-0 and 2 more: nothing to optimise: every weight is 0",
    ),
    (
        {"style": ["glass", "glass-dots"], "init": {"dots-x": "noise", "x": "content"}},
        "g: the cells (style glass, init noise) and (style glass-dots, init content) have one name,"
        " g-glass-dots-x. Give",
    ),
    ({"init": {"x" * 63: "noise"}}, "has 65 characters, but 64 is the most. Give the grid a short"),
]


@pytest.mark.parametrize(("over", "message"), MISTAKES)
def test_mistake_in_a_grid_is_one_sentence(over: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        with_grids(g=over)
    text = str(raised.value)
    assert text.startswith("params.yaml has 1 mistake(s):\n  grids.g")
    assert message in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: p["grids"]["g"].update(base="frist"),
            "grids.g.base: no experiment 'frist'. Did",
        ),
        (
            lambda p: p["grids"].update(h={"base": "g-1", "over": {"size": [20, 32]}}),
            "grids.h.base: g-1 is a cell of a grid, but a base is one of the `experiments`",
        ),
        (
            lambda p: p["grids"].update(g=None),
            "grids.g: None: a mapping of keys to values is needed",
        ),
        (lambda p: p["grids"]["g"].pop("base"), "grids.g.base: is missing. Add it"),
        (lambda p: p["grids"]["g"].update(titel="x"), "grids.g.titel: unknown key. Did you mean"),
        (lambda p: p["grids"].update({"a.b": p["grids"].pop("g")}), "grids.a.b: 'a.b': a name has"),
        (
            lambda p: p["grids"].update({"both": p["grids"].pop("g")}),
            "grids.both: there is a figure",
        ),
        (
            lambda p: p["experiments"].update({"g-1": p["experiments"]["first"]}),
            "grids.g: its cell g-1 has the name of another experiment. Rename the grid",
        ),
        (
            lambda p: p["experiments"].update({"a.b": p["experiments"]["first"]}),
            "experiments.a.b: 'a.b': a name has up to 64 letters, digits, '-' and '_', and begins",
        ),
        (
            lambda p: p["grids"]["g"].update(over={"seed": "0..999", "warm_evaluations": "1..100"}),
            "grids: 100,000 cells, but all grids together have up to 10,000. Take fewer values",
        ),
        (
            lambda p: p["experiments"]["first"].update(size=3),
            "experiments.first.size: 3: Input should be greater than or equal to 16",
        ),
        (lambda p: p.pop("grids"), "grids: is missing. Add it"),
        (lambda p: p.update(grids=None), "grids: None: a mapping of keys to values is needed"),
    ],
)
def test_mistake_around_a_grid_is_one_sentence(change: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        with_grids(change, g={"seed": "0..2"})
    text = str(raised.value)
    assert text.startswith("params.yaml has 1 mistake(s):\n  ")
    assert message in text


def test_two_grids_with_one_cell_are_named() -> None:
    with pytest.raises(
        UserError, match=r"grids.a-1: its cell a-1-20 has the name of another exper"
    ):
        with_grids(**{"a": {"seed": [1], "size": [20, 32]}, "a-1": {"seed": [20]}})


def test_content_that_is_expanded_stays_as_it_was() -> None:
    content = tiny_params(Path("vgg.pth"))
    content["grids"] = {"g": {"base": "first", "over": RATIOS | {"lbfgs.lr": [0.5]}}}
    before = copy.deepcopy(content)
    validated(content, "params.yaml")
    assert content == before


def test_cells_file_lists_all_cells_and_says_when_dvc_has_read_others(workspace: Path) -> None:
    assert not update_cells_file(with_grids()), "there was none, so that DVC has read none"
    assert yaml.safe_load(paths.CELLS.read_text())["experiments"] == {}
    assert update_cells_file(with_grids(g={"seed": [2, 1]}))
    assert yaml.safe_load(paths.CELLS.read_text())["experiments"] == {"g-1": {}, "g-2": {}}
    before = paths.CELLS.stat().st_ino
    assert not update_cells_file(with_grids(g={"seed": "1..2"})), "the order does not matter"
    assert paths.CELLS.stat().st_ino == before
    assert update_cells_file(with_grids())


def test_shipped_cells_are_those_of_the_shipped_grids() -> None:
    listed = yaml.safe_load((REPOSITORY / paths.CELLS).read_text("utf-8"))["experiments"]
    assert list(listed) == sorted(read_params(REPOSITORY / "params.yaml").grid_of)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "params.yaml"
    path.write_text((REPOSITORY / "params.yaml").read_text("utf-8"), "utf-8")
    return path


def test_added_grid_leaves_all_other_lines_as_they_are(file: Path) -> None:
    before = file.read_text("utf-8").splitlines()
    axes = ["content_weight=0.1,1e-3", "style=glass,night", "seed=0..2"]
    first = add_grid("one", "fig3-b", [*axes, "style_layers={shallow: [conv1_1]}"])
    assert first[0] == "one-0.1-glass-0-shallow"
    assert add_grid("two", "fig3-c", ["seed=0..1"]) == ["two-0", "two-1"]
    lines = file.read_text("utf-8").splitlines()
    rest = [line for line in before if line != "grids: {}"]
    assert [line for line in lines if line in rest] == rest
    params = read_params(file)
    assert (len(params.grid_of), params.experiments["two-1"].seed) == (14, 1)
    assert set(yaml.safe_load(paths.CELLS.read_text())["experiments"]) == set(params.grid_of)


@pytest.mark.parametrize(
    ("name", "base", "axes", "message"),
    [
        ("g", "fig3-bb", ["seed=1"], "with the grid 'g' has 1 mistake.*Did you mean 'fig3-b'"),
        ("g", "fig3-b", ["seed"], "--over seed: write KEY=VALUE,VALUE"),
        ("g", "fig3-b", ["seed=1", "seed=2"], "--over seed=2: .* with each key once"),
        ("g", "fig3-b", ["seed=[1"], r"--over seed=\[1 is not YAML"),
        ("g", "fig3-b", ["seed=4..0"], "Write 0..4"),
        ("a b", "fig3-b", ["seed=1"], "a name has up to 64 letters"),
        ('"g"', "fig3-b", ["seed=1"], "a name has up to 64 letters"),
    ],
)
def test_grid_with_a_mistake_is_not_added(
    name: str, base: str, axes: list[str], message: str, file: Path
) -> None:
    before = file.read_bytes()
    with pytest.raises(UserError, match=rf"(?s){message}"):
        add_grid(name, base, axes)
    assert file.read_bytes() == before
    assert not paths.CELLS.exists()


def test_grid_is_added_once(file: Path) -> None:
    add_grid("g", "fig3-b", ["seed=1"])
    with pytest.raises(UserError, match=r"has a grid 'g'\. Choose another name"):
        add_grid("g", "fig3-b", ["seed=2"])
