"""Imports run down the layers, and each stage depends on its code, through its plan or directly."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY

from pipeline.config.code_hash import imported_modules
from pipeline.config.plan import BACKBONE_CODE, EXPERIMENT_CODE, REPORT_CODE

PACKAGE = REPOSITORY / "pipeline"

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}


def test_imports_run_down_the_layers() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_packages_have_at_most_eight_modules() -> None:
    sizes = Counter(path.parent for path in MODULES.values())
    assert all(size <= 8 for size in sizes.values()), sizes


def stages() -> dict[str, dict[str, Any]]:
    written = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in written.items()}


def test_stages_after_the_plan_depend_on_their_plan_and_no_settings() -> None:
    after = {"backbone": "_backbone", "stylize": "${key}", "report": "_report"}
    for name, plan in after.items():
        assert f"data/plan/{plan}.json" in stages()[name]["deps"]
        assert "params" not in stages()[name]
    assert stages()["stylize"]["deps"] == ["data/plan/${key}.json", "data/backbone"]


def test_fetch_depends_on_the_code_that_it_imports() -> None:
    files = [
        file.relative_to(REPOSITORY) for file in imported_modules("pipeline.stages.fetch").values()
    ]
    code = [Path(each) for each in stages()["fetch"]["deps"] if each.startswith("pipeline")]
    assert [file for file in files if not any(file.is_relative_to(each) for each in code)] == []
    assert [each for each in code if not any(file.is_relative_to(each) for file in files)] == []


def test_plan_depends_on_all_code() -> None:
    assert "pipeline" in stages()["plan"]["deps"]


@pytest.mark.parametrize(
    "module", ["pipeline.stages.fetch", BACKBONE_CODE, EXPERIMENT_CODE, REPORT_CODE]
)
def test_code_in_a_plan_is_what_python_imports(module: str) -> None:
    """Python has the last word on what a module imports before it runs."""
    code = (
        f"import sys, {module};"
        "print(*(name for name in sys.modules if name.split('.')[0] == 'pipeline'))"
    )
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(answer.stdout.split()) <= set(imported_modules(module))
    assert all(file.is_file() for file in imported_modules(module).values())


def test_stages_are_named_as_their_modules() -> None:
    assert set(stages()) == {path.stem for path in MODULES.values() if path.parent.name == "stages"}


def test_the_core_runs_without_tracking() -> None:
    """A GPU machine may have torch, Lightning and pydantic, and nothing else."""
    blocked = "wandb", "dvc", "pooch", "jinja2", "typer"
    modules = (
        "losses.objective",
        "networks.weight_files",
        "imaging.picture_files",
        "transfer.module",
    )
    code = "import sys; sys.modules.update(dict.fromkeys({!r})); import {}".format(
        blocked, ", ".join(f"pipeline.{name}" for name in modules)
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=REPOSITORY, check=True)


@pytest.mark.parametrize("stage", ["fetch", "plan"])
def test_stage_does_not_wait_for_torch(stage: str) -> None:
    code = f"import sys, pipeline.stages.{stage}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
