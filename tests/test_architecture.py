"""The house: imports run down the floors, and dvc.yaml names what each stage is made of."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "pipeline"

FLOORS = [
    {"errors", "files", "losses", "lbfgs", "crops", "trainer"},
    {"layers", "pictures", "sources", "documents"},
    {"fields", "images", "vgg", "provenance", "paths", "plots", "sheets"},
    {"schema", "objective", "weights", "status", "small", "student"},
    {"params", "module", "lessons", "tracking"},
    {"presets", "callbacks", "distillation", "cells"},
    {"training", "measures", "media"},
    {"pages"},
    {"stages.fetch", "stages.backbone", "stages.stylize", "stages.report", "stages.distil"},
]

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}


def imported(path: Path) -> set[str]:
    """Returns the modules of the pipeline that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline."):
            found.add(str(node.module).removeprefix("pipeline."))
        elif isinstance(node, ast.ImportFrom) and node.module == "pipeline":
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return found


def everything_below(module: str) -> set[str]:
    found, waiting = set(), [module]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += imported(MODULES[current])
    return found


def floor_of(module: str) -> int:
    return next(level for level, floor in enumerate(FLOORS) if module in floor)


def test_every_module_has_a_floor() -> None:
    assert set(MODULES) == set().union(*FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_strictly_down(module: str) -> None:
    for below in imported(MODULES[module]):
        assert floor_of(below) < floor_of(module), f"{module} imports {below}"


def stages() -> dict[str, dict[str, Any]]:
    written = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in written.items()}


@pytest.mark.parametrize("stage", stages())
def test_stage_depends_on_exactly_the_code_it_imports(stage: str) -> None:
    files = {
        str(MODULES[module].relative_to(REPOSITORY))
        for module in everything_below(f"stages.{stage}")
    }
    files |= {"pipeline/__init__.py", "pipeline/stages/__init__.py"}
    declared = {dep for dep in stages()[stage]["deps"] if dep.endswith(".py")}
    assert declared == files


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
