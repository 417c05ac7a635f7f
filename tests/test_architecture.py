"""The house: imports run down the floors, and dvc.yaml names what each stage is made of."""

from __future__ import annotations

import ast
import subprocess
import sys
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY

from pipeline.stages.code import STAGES, imported, modules_of

PACKAGE = REPOSITORY / "pipeline"

FLOORS = [
    {"errors", "files", "sums", "precision", "crops", "trainer", "parents", "shared_wandb"}
    | {"curvature", "graphs"},
    {"losses", "layers", "operations", "winograd", "forks", "basis"},
    {"lbfgs", "convolutions", "pictures", "sources", "documents", "warm"},
    {"fields", "images", "vgg", "provenance", "paths", "plots", "sheets"},
    {"schema", "frozen", "memory", "weights", "status", "small", "student", "checkpoints"},
    {"params", "objective", "lessons", "tracking", "resources"},
    {"recording", "plans", "runs"},
    {"presets", "module", "distillation", "cells"},
    {"course", "progress", "problem", "measures", "media"},
    {"callbacks"},
    {"training", "resuming", "pages"},
    {"search"},
    {"repro"},
    {
        f"stages.{name}"
        for name in ("code", "plan", "fetch", "backbone", "stylize", "report", "distil")
    },
]

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}


def below(module: str) -> set[str]:
    """Returns the modules of the pipeline that a module imports itself."""
    names = {name.removeprefix("pipeline.") for name in imported(MODULES[module])}
    return names & set(MODULES)


def floor_of(module: str) -> int:
    return next(level for level, floor in enumerate(FLOORS) if module in floor)


def test_every_module_has_a_floor() -> None:
    assert set(MODULES) == set().union(*FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_strictly_down(module: str) -> None:
    for other in below(module):
        assert floor_of(other) < floor_of(module), f"{module} imports {other}"


def stages() -> dict[str, dict[str, Any]]:
    written = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in written.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_stage_depends_on_the_record_of_its_code(stage: str) -> None:
    assert f"data/code/{stage}.json" in stages()[stage]["deps"]
    assert f"data/code/{stage}.json" in stages()["code"]["outs"]


@pytest.mark.parametrize("stage", STAGES)
def test_stage_ends_with_dvc(stage: str) -> None:
    module = stages()[stage]["cmd"].split()[2].removeprefix("pipeline.")
    assert "    end_with_dvc()\n" in MODULES[module].read_text(encoding="utf-8")


@pytest.mark.parametrize("stage", STAGES)
def test_record_of_the_code_is_what_python_imports(stage: str) -> None:
    """Python has the last word on what a stage imports before it runs."""
    code = (
        f"import sys, pipeline.stages.{stage};"
        "print(*(name for name in sys.modules if name.split('.')[0] == 'pipeline'))"
    )
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(answer.stdout.split()) <= set(modules_of(stage))
    assert all(file.is_file() for file in modules_of(stage).values())


def test_stages_are_named_as_their_modules() -> None:
    assert {f"stages.{name}" for name in stages()} == FLOORS[-1]


@pytest.mark.parametrize("module", MODULES)
def test_rooms_stay_small(module: str) -> None:
    text = MODULES[module].read_text("utf-8")
    assert len(text.splitlines()) <= 250
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.body[0].lineno
            assert length < 50, f"{module}.{node.name} has {length} lines"


def test_the_core_runs_without_tracking_and_validation() -> None:
    """A GPU machine may have torch and Lightning and nothing else."""
    blocked = "wandb", "dvc", "pydantic", "pooch", "jinja2"
    modules = "losses", "vgg", "weights", "objective", "images", "pictures", "training"
    code = "import sys; sys.modules.update(dict.fromkeys({!r})); import {}".format(
        blocked, ", ".join(f"pipeline.{name}" for name in modules)
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=REPOSITORY, check=True)


def test_fetching_a_picture_does_not_wait_for_torch() -> None:
    code = "import sys, pipeline.stages.fetch; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
