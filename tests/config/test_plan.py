"""Plans: what they bind, what they leave out, and what is said where there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, save_picture, tiny_params, write_params

from pipeline import paths
from pipeline.config.code_hash import code_hash, imported_modules
from pipeline.config.params import read_params
from pipeline.config.plan import (
    EXPERIMENT_CODE,
    REPORT_TEMPLATES,
    read_backbone_plan,
    read_plan,
    read_report_plan,
    write_plans,
)
from pipeline.errors import UserError
from pipeline.files import sha256
from pipeline.stages.fetch import fetch


@pytest.fixture
def params(workspace: Path, weights_file: Path) -> Any:
    """The parameters of a workspace after ``fetch`` and ``plan``."""
    fetch(read_params())
    write_plans(read_params())
    return tiny_params(weights_file)


def plan_files() -> set[str]:
    return {file.name for file in paths.PLANS.iterdir()}


def test_plan_has_the_settings_the_hashes_of_the_pictures_and_of_the_code(params: Any) -> None:
    plan = read_plan("second")
    assert plan.experiment == "second"
    assert plan.settings == read_params().experiments["second"]
    assert plan.code == code_hash(EXPERIMENT_CODE)
    hashes = {role: (image.name, image.sha256) for role, image in plan.images.items()}
    assert hashes == {
        role: (name, sha256(paths.picture(name)))
        for role, name in (("content", "coffee"), ("style", "gravel"))
    }


def test_backbone_and_report_have_a_plan_of_their_sections(params: Any) -> None:
    assert read_backbone_plan().settings == read_params().backbone
    plan = read_report_plan()
    for section in ("images", "defaults", "experiments", "figures"):
        assert getattr(plan, section) == getattr(read_params(), section)
    assert plan.figure_of("first") == "both"


def test_plan_of_the_report_depends_on_its_templates(
    params: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_report_plan().code
    shutil.copytree(REPORT_TEMPLATES, tmp_path / "templates")
    monkeypatch.setattr("pipeline.config.plan.REPORT_TEMPLATES", tmp_path / "templates")
    write_plans(read_params())
    assert read_report_plan().code == before
    (tmp_path / "templates/report.css").write_text("body { color: black }")
    write_plans(read_params())
    assert read_report_plan().code != before


def test_options_that_decide_no_result_are_in_no_plan(params: Any) -> None:
    before = {name: (paths.PLANS / name).read_bytes() for name in plan_files()}
    params |= {"tracking": {"project": "other"}, "checkpoints": {"every": 7.0}}
    write_params(Path(), params)
    assert {name: (paths.PLANS / name).read_bytes() for name in plan_files()} == before
    options = read_params().run_options("first")
    assert (options.tracking.project, options.checkpoints.every) == ("other", 7.0)
    assert options.group == "both"


def test_plan_of_a_removed_experiment_is_removed(params: Any) -> None:
    del params["experiments"]["second"]
    params["figures"] = {}
    write_params(Path(), params)
    assert plan_files() == {"_backbone.json", "_report.json", "first.json"}


def test_experiment_without_its_pictures_is_left_out_or_named(params: Any) -> None:
    paths.picture("coffee").unlink()
    with pytest.raises(UserError, match="image 'coffee' of second was not fetched"):
        write_plans(read_params())
    assert write_plans(read_params(), skip_missing=True) == ["first"]
    assert "second.json" not in plan_files()


def test_picture_of_an_earlier_fetch_does_not_count_after_one_that_failed(
    params: Any, tmp_path: Path
) -> None:
    own = save_picture(tmp_path / "mine.png")
    params["images"]["coffee"] = {"source": "mine.png"}
    write_params(tmp_path, params)
    fetch(read_params())
    own.write_text("not a picture")
    with pytest.raises(UserError, match="is not a picture"):
        fetch(read_params())
    assert paths.picture("coffee").is_file()
    assert write_plans(read_params(), skip_missing=True) == ["first"]


def test_experiment_without_a_plan_is_told_how_to_get_one(params: Any) -> None:
    with pytest.raises(UserError, match=r"Did you mean 'first'\? Run `dvc repro plan`, which"):
        read_plan("frist")


@pytest.mark.parametrize("read", [read_backbone_plan, read_report_plan, lambda: read_plan("first")])
def test_stage_without_any_plan_is_told_how_to_get_one(read: Any, workspace: Path) -> None:
    with pytest.raises(UserError, match=r"there is no plan .* in data/plan. Run `dvc repro plan`"):
        read()


def test_plan_of_another_version_is_refused(params: Any) -> None:
    file = paths.plan("first")
    content = json.loads(file.read_text("utf-8"))
    content["settings"]["no_such_setting"] = 1
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"first\.json was written by another version"):
        read_plan("first")


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda _: b"", lambda _: b"\xff"])
def test_damaged_plan_is_refused(damage: Callable[[bytes], bytes], params: Any) -> None:
    file = paths.plan("first")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=r"first\.json was written by another .*, or is damaged"):
        read_plan("first")


def test_picture_that_was_replaced_since_the_plan_is_refused(params: Any) -> None:
    save_picture(paths.picture("gravel"))
    with pytest.raises(UserError, match=r"gravel\.png is not the picture that data/plan/first\.js"):
        read_plan("first")


def test_code_hash_depends_on_the_modules_and_on_the_data(tmp_path: Path) -> None:
    data = tmp_path / "page.html"
    data.write_text("a")
    before = code_hash("pipeline.files", [data])
    data.write_text("b")
    assert len({before, code_hash("pipeline.files", [data]), code_hash("pipeline.files")}) == 3
    assert code_hash("pipeline.files") == code_hash("pipeline.files") != code_hash("pipeline.paths")


def test_code_of_an_experiment_has_the_loss_terms_and_not_what_reads_params() -> None:
    modules = imported_modules(EXPERIMENT_CODE)
    terms = {file.stem for file in (REPOSITORY / "pipeline/losses").glob("[!_]*.py")}
    assert {f"pipeline.losses.{term}" for term in terms} <= set(modules)
    assert {"pipeline", "pipeline.config.schema", "pipeline.optim.lbfgs"} <= set(modules)
    unwanted = ("pipeline.stages", "pipeline.config.params", "pipeline.imaging.downloads")
    assert not [name for name in modules if name.startswith(unwanted)]
