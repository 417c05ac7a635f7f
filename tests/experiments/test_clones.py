"""A clone holds the same results as its original, complete, and nothing that differs from it."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from projects import Project, small_params

from pipeline.errors import UserError
from pipeline.stages.report import report

CLEAN = "Data and pipelines are up to date."


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose results were pushed, after one of its experiments was removed."""
    params = small_params()
    params["experiments"]["third"] = {"content": "chelsea", "style": "coffee"}
    params["experiments"]["removed"] = {"content": "coffee", "style": "chelsea"}
    project = Project.new(tmp_path_factory.mktemp("original"), params, computing=False)
    project.repro()
    project.change(lambda p: p["experiments"].pop("removed"))
    project.repro()
    storage = tmp_path_factory.mktemp("storage")
    project.dvc("remote", "add", "--default", "storage", str(storage))
    project.commit()
    project.dvc("push", "--run-cache")
    return project


@pytest.fixture
def clone(original: Project, tmp_path: Path) -> Project:
    """A clone of the original, without its data."""
    return original.clone(tmp_path / "clone")


@pytest.fixture(scope="module")
def pulled_once(original: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    clone = original.clone(tmp_path_factory.mktemp("pulled") / "clone")
    clone.dvc("pull")
    return clone


@pytest.fixture
def pulled(pulled_once: Project, tmp_path: Path) -> Project:
    """A clone of the original with its data; a copy of one, because to pull takes seconds."""
    copy = Project(tmp_path / "pulled", pulled_once.params)
    shutil.copytree(pulled_once.folder, copy.folder, symlinks=True)
    return copy


def files(project: Project, *folders: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(project.folder)): path.read_bytes()
        for folder in folders
        for path in sorted((project.folder / folder).rglob("*"))
        if path.is_file()
    }


def set_weight(project: Project, weight: float) -> None:
    project.change(lambda p: p["experiments"]["first"].update(content_weight=weight))


def assert_complete(project: Project) -> None:
    summary = (project.folder / "reports/summary.md").read_text("utf-8")
    assert "| third |" in summary
    assert "no result" not in summary


def test_clone_has_the_same_results_and_nothing_to_compute(
    original: Project, pulled: Project
) -> None:
    folders = "data/experiments", "data/images", "data/backbone", "data/plan", "reports"
    assert files(pulled, *folders) == files(original, *folders)
    assert CLEAN in original.dvc("status")
    for folder in ("data/experiments/first", "data/images", "data/plan"):  # what kill -9 leaves
        (pulled.folder / folder / ".file.png.7.part").touch()
    assert CLEAN in pulled.dvc("status")
    assert pulled.repro() == set()
    assert_complete(pulled)


def test_removed_experiment_that_comes_back_comes_from_the_cache(
    original: Project, tmp_path: Path
) -> None:
    copy = Project(tmp_path / "copy", original.params)
    shutil.copytree(original.folder, copy.folder)
    removed = {"content": "coffee", "style": "chelsea"}
    copy.change(lambda p: p["experiments"].update(removed=removed))
    assert copy.repro() <= {"fetch", "plan", "report"}
    assert (copy.folder / "data/experiments/removed/image.png").is_file()
    copy.change(lambda p: p["experiments"].pop("removed"))
    assert copy.repro() <= {"fetch", "plan", "report"}
    assert (copy.folder / "data/removed/removed/image.png").is_file()
    assert copy.run("git", "status", "--porcelain") == ""


def test_change_that_is_taken_back_in_a_clone_leaves_it_as_it_was(pulled: Project) -> None:
    before = files(pulled, "data/experiments", "reports")
    set_weight(pulled, 3.0)
    assert pulled.repro() == {"fetch", "plan", "stylize@first", "report"}
    set_weight(pulled, 1.0)
    assert pulled.repro() == {"fetch", "plan", "stylize@first", "report"}
    assert files(pulled, "data/experiments", "reports") == before
    assert CLEAN in pulled.dvc("status")
    assert pulled.run("git", "status", "--porcelain") == ""
    pulled.dvc("fetch", "--run-cache")
    set_weight(pulled, 3.0)
    assert not {name for name in pulled.repro() if "@" in name}
    set_weight(pulled, 1.0)
    assert not {name for name in pulled.repro() if "@" in name}


def test_runner_comes_to_the_files_of_dvc_in_a_clone(tmp_path: Path) -> None:
    """At another git revision, with another number of threads."""
    params = small_params()
    params["defaults"] |= {"threads": None, "evaluations": 4}
    project = Project.prepared(tmp_path / "original", params)
    assert project.repro() >= {"stylize@first", "stylize@second", "report"}
    project.commit()
    clone = project.clone(tmp_path / "clone")
    assert "2 experiments to compute" in clone.python("pipeline", "run", "--jobs", "2")
    assert clone.run("git", "status", "--porcelain") == ""
    assert CLEAN in clone.dvc("status")


def test_report_of_some_of_the_results_is_an_error_with_its_remedy(clone: Project) -> None:
    set_weight(clone, 3.0)
    said = clone.dvc("repro", "--pull", "--allow-missing", check=False)
    assert "results of second, third are recorded in dvc.lock but not all in data/exp" in said
    assert "error:" in said
    assert not (clone.folder / "reports/index.html").exists()
    assert "report:" in clone.dvc("status")
    assert "`dvc repro --pull` from its remote" in said
    said = clone.dvc("repro", "--pull")
    assert re.findall(r"Running stage '([^']+)'", said) == ["report"]
    assert_complete(clone)
    assert CLEAN in clone.dvc("status")


def test_dvc_pulls_what_is_missing_where_nothing_may_be(clone: Project) -> None:
    set_weight(clone, 3.0)
    said = clone.dvc("repro", "--pull")
    ran = set(re.findall(r"Running stage '([^']+)'", said))
    assert ran == {"fetch", "plan", "stylize@first", "report"}
    assert_complete(clone)
    assert CLEAN in clone.dvc("status")


@pytest.mark.parametrize("arguments", [["--pull", "--allow-missing"], ["--allow-missing"]])
def test_report_whose_figures_changed_is_complete_or_an_error(
    arguments: list[str], clone: Project
) -> None:
    clone.change(lambda p: p["figures"]["both"].update(title="Another title"))
    said = clone.dvc("repro", *arguments, check=False)
    summary = clone.folder / "reports/summary.md"
    if "ERROR" in said:
        assert not summary.exists()
    else:
        assert "## Another title" in summary.read_text("utf-8")
        assert_complete(clone)


@pytest.mark.parametrize(
    "lost",
    [
        "data/experiments/second",
        "data/experiments/second/image.png",
        "data/experiments/second/history.csv",
        "data/experiments/second/provenance.json",
        "data/experiments/second/intermediates",
        "data/experiments/second/intermediates/00004.png",
        "data/experiments",
        "data/images/gravel.png",
        "data/images",
        "data/plan/second.json",
    ],
)
def test_report_without_files_that_dvc_has_is_an_error(
    lost: str, original: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout may have been interrupted. The earlier report stays."""
    shutil.copytree(original.folder / "data", tmp_path / "data", copy_function=os.link)
    for name in ("dvc.lock", "params.yaml"):
        shutil.copyfile(original.folder / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    report()
    before = files(Project(tmp_path, {}), "reports")
    shutil.rmtree(lost) if Path(lost).is_dir() else Path(lost).unlink()
    with pytest.raises(UserError, match=r"`dvc (checkout|repro fetch|repro plan)`"):
        report()
    assert files(Project(tmp_path, {}), "reports") == before


def test_report_that_fails_within_dvc_leaves_the_earlier_one(pulled: Project) -> None:
    before = files(pulled, "reports")
    picture = pulled.folder / "data/experiments/second/image.png"
    picture.unlink()
    said = pulled.dvc("repro", "--single-item", "report", check=False)
    assert "error: the results of second are recorded in dvc.lock" in said
    assert files(pulled, "reports") == before
    pulled.dvc("repro")
    assert picture.is_file()
    assert files(pulled, "reports") == before
    assert CLEAN in pulled.dvc("status")


def test_runner_restores_files_that_were_lost(pulled: Project) -> None:
    (pulled.folder / "data/experiments/second/intermediates/00004.png").unlink()
    pulled.python("pipeline", "run")
    assert CLEAN in pulled.dvc("status")
    assert pulled.run("git", "status", "--porcelain") == ""


def test_report_of_experiments_that_were_not_computed_yet_is_none(pulled: Project) -> None:
    set_weight(pulled, 3.0)
    fourth = {"content": "coffee", "style": "chelsea"}
    pulled.change(lambda p: p["experiments"].update(fourth=fourth))
    pulled.dvc("repro", "plan")
    assert "4 experiments, 2 without results" in pulled.python("pipeline.stages.report")
    pulled.dvc("repro", "--single-item", "report")
    summary = (pulled.folder / "reports/summary.md").read_text("utf-8")
    assert "fourth: no result. It has not been run yet." in summary
    assert "first: no result. Its results were made with other settings" in summary
    pulled.repro()
    assert_complete(pulled)


def test_lock_with_the_marks_of_a_merge_is_an_error(pulled: Project) -> None:
    lock = pulled.folder / "dvc.lock"
    lock.write_text(f"<<<<<<< HEAD\n{lock.read_text('utf-8')}>>>>>>> other\n", "utf-8")
    said = pulled.python("pipeline.stages.report", check=False)
    assert "error: dvc.lock is not as DVC writes it" in said
