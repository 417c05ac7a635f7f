"""The house: imports run down the floors, and dvc.yaml names what each stage is made of."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY
from pipeline.stages.code import STAGES, modules_of

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


@pytest.mark.parametrize("stage", STAGES)
def test_stage_depends_on_the_record_of_its_code(stage: str) -> None:
    assert f"data/code/{stage}.json" in stages()[stage]["deps"]
    assert f"data/code/{stage}.json" in stages()["code"]["outs"]


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
    assert set(stages()) == {path.stem for path in MODULES.values() if path.parent.name == "stages"}


def test_the_core_runs_without_tracking() -> None:
    """A GPU machine may have torch, Lightning and pydantic, and nothing else."""
    blocked = "wandb", "dvc", "pooch", "jinja2", "typer"
    modules = "losses.objective", "networks.weight_files", "imaging.picture_files", "transfer.fit"
    code = "import sys; sys.modules.update(dict.fromkeys({!r})); import {}".format(
        blocked, ", ".join(f"pipeline.{name}" for name in modules)
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=REPOSITORY, check=True)


def test_fetching_a_picture_does_not_wait_for_torch() -> None:
    code = "import sys, pipeline.stages.fetch; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
