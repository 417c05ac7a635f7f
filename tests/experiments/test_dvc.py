"""DVC runs what a change concerns, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import save_picture
from projects import Project, small_params


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("project")
    project = Project.new(folder, small_params(), computing=False)
    ran = project.repro()
    assert ran == {"fetch", "plan", "backbone", "stylize@first", "stylize@second", "report"}
    return project


def test_nothing_to_do_runs_nothing(project: Project) -> None:
    assert project.repro() == set()


def test_one_ratio_runs_one_experiment_and_an_edit_during_a_run_waits_for_the_next(
    project: Project,
) -> None:
    """An experiment runs with the settings of its plan, however late it begins."""

    def set_weight(weight: float) -> None:
        project.change(lambda p: p["experiments"]["first"].update(content_weight=weight))

    def recorded_weight() -> float:
        record = project.folder / "data/experiments/first/provenance.json"
        weight: float = json.loads(record.read_text("utf-8"))["settings"]["content_weight"]
        return weight

    set_weight(2.0)
    project.dvc("repro", "plan")
    set_weight(7.0)
    project.dvc("repro", "--single-item", "stylize@first")
    assert recorded_weight() == 2.0
    assert project.repro() == {"fetch", "plan", "stylize@first", "report"}
    assert recorded_weight() == 7.0


def test_default_runs_the_cells_that_have_it_from_there(project: Project) -> None:
    before = project.params["defaults"]["init"]
    project.change(lambda p: p["defaults"].update(init="style"))
    assert project.repro() == {"plan", "stylize@first", "report"}
    project.change(lambda p: p["defaults"].update(init=before))
    project.repro()


def test_added_experiment_runs_alone_and_an_edit_taken_back_comes_from_the_cache(
    project: Project,
) -> None:
    third = {"content": "chelsea", "style": "coffee"}
    project.change(lambda p: p["experiments"].update(third=third))
    assert project.repro() == {"fetch", "plan", "stylize@third", "report"}
    project.change(lambda p: p["experiments"].pop("third"))
    assert project.repro() == {"fetch", "report"}


CELLS = {"stylize@first", "stylize@second"}


@pytest.mark.parametrize(
    ("module", "stages"),
    [
        ("report/contact_sheets.py", {"report"}),
        ("report/templates/report.css", {"report"}),
        ("optim/history.py", {*CELLS, "report"}),
        ("networks/prepare.py", {"fetch", "backbone"}),
        ("config/params.py", {"fetch", "report"}),
    ],
)
def test_edit_runs_again_what_imports_it(module: str, stages: set[str], project: Project) -> None:
    file = project.folder / "pipeline" / module
    before = file.read_text("utf-8")
    file.write_text(f"{before}\n# an edit\n", encoding="utf-8")
    assert project.repro() == {"plan", *stages}
    file.write_text(before, encoding="utf-8")
    assert project.repro() <= {"fetch", "report"}, "the rest comes from DVC's cache"


def test_what_decides_no_result_runs_nothing(project: Project) -> None:
    project.change(lambda p: p["tracking"].update(project="other", tags=["a"]))
    project.change(lambda p: p.update(checkpoints={"every": 7.0}))
    file = project.folder / "params.yaml"
    file.write_text(f"# A comment.\n{file.read_text('utf-8')}", encoding="utf-8")
    assert project.repro() == set()


def test_cast_that_dvc_changes_is_followed_and_so_is_the_file_that_dvc_wrote(
    project: Project,
) -> None:
    def pictures() -> dict[str, str]:
        plan = json.loads((project.folder / "data/plan/first.json").read_text("utf-8"))
        return {role: image["name"] for role, image in plan["images"].items()}

    project.change(lambda p: p.update(cast={"photograph": "chelsea", "style_b": "gravel"}))
    project.change(
        lambda p: p["experiments"]["first"].update(content="photograph", style="style_b")
    )
    assert project.repro() == {"fetch", "plan"}, "the plan of an experiment has the picture's name"
    project.commit()
    project.dvc("exp", "run", "-S", "cast.photograph=coffee", "plan")
    assert pictures() == {"content": "coffee", "style": "gravel"}
    project.dvc("exp", "run", "-S", "cast.style_b=chelsea", "stylize@first")
    assert pictures() == {"content": "coffee", "style": "chelsea"}
    file = project.folder / "params.yaml"
    text = file.read_text("utf-8").replace("photograph: coffee", "photograph: gravel")
    file.write_text(text, encoding="utf-8")
    project.dvc("repro", "plan")
    assert pictures() == {"content": "gravel", "style": "chelsea"}
    picture = {"content": "chelsea", "style": "gravel"}
    project.change(lambda p: p["experiments"]["first"].update(picture))
    project.change(lambda p: p.update(cast={}))
    project.repro()


def test_replaced_picture_runs_its_experiments_again(project: Project) -> None:
    own = save_picture(project.folder / "data/own/mine.png")
    entry = {"source": "data/own/mine.png", "credit": "me", "licence": "mine"}
    project.change(lambda p: p["images"].update(mine=entry))
    project.change(lambda p: p["experiments"]["second"].update(style="mine"))
    ran = project.repro()
    assert {"fetch", "stylize@second", "report"} <= ran
    assert not {"stylize@first", "backbone"} & ran
    save_picture(own, mode="1")
    ran = project.repro()
    assert {"fetch", "stylize@second"} <= ran
    assert not {"stylize@first", "backbone"} & ran


def test_metrics_experiments_and_plots_can_be_shown(project: Project) -> None:
    assert "style_distance" in project.dvc("metrics", "show")
    project.commit()
    table = project.dvc("exp", "show", "--csv")
    assert "experiments.first.content_weight" in table
    assert "data/experiments/first/metrics.json:style_distance" in table
    assert "stylize@first" in project.dvc("dag")
    project.change(lambda p: p["experiments"]["first"].update(seed=7))
    project.repro()
    project.dvc("plots", "diff", "--out", "compared")
    page = (project.folder / "compared/index.html").read_text("utf-8")
    picture = "data_experiments_first_image.png"
    shown = [f"compared/static/{revision}_{picture}" for revision in ("HEAD", "workspace")]
    one, other = ((project.folder / file).read_bytes() for file in shown)
    assert one != other
    assert all(file.removeprefix("compared/") in page for file in shown)


def test_mistake_stops_with_its_sentence_and_loses_nothing(project: Project) -> None:
    before = (project.folder / "data/experiments/first/image.png").read_bytes()
    project.change(lambda p: p["experiments"]["first"].update(contnet_weight=2))
    text = project.dvc("repro", check=False)
    project.change(lambda p: p["experiments"]["first"].pop("contnet_weight"))
    assert "Did you mean 'content_weight'?" in text
    assert "Traceback" not in text
    project.repro()
    assert (project.folder / "data/experiments/first/image.png").read_bytes() == before


def test_dvc_that_is_killed_leaves_no_orphan_and_the_next_goes_on(
    tmp_path: Path,
) -> None:
    params = small_params() | {"checkpoints": {"every": 0.5}}
    params["defaults"]["evaluations"] = 1500
    del params["experiments"]["second"]
    params["figures"] = {}
    project = Project.prepared(tmp_path / "project", params)
    record = project.folder / "data/experiments/first/history.csv"

    def rows() -> int:
        return record.read_text().count("\n") if record.is_file() else 0

    def checkpoints() -> bool:
        return any((project.folder / "data/checkpoints").glob("first-*.pt"))

    environment = project.environment
    # DVC then takes /bin/sh, which may stay as the parent of a stage.
    environment.pop("SHELL", None)
    with subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=project.folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as dvc:
        end = time.monotonic() + 120
        while not (rows() > 100 and checkpoints()):
            assert time.monotonic() < end
            time.sleep(0.05)
        dvc.kill()
    time.sleep(5)
    assert not (record.parent / "image.png").exists()
    before = rows()
    time.sleep(1)
    assert rows() == before < 1501, "an orphan goes on"
    assert "first: goes on after evaluation" in project.dvc("repro")
    assert rows() == 1501
    assert project.repro() == set()
