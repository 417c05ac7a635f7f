"""Where outputs are links into DVC's cache, no stage writes through them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import save_picture
from projects import Project, small_params

# In one process, since each would import torch.
ALL_STAGES = """
from pipeline.config.params import read_params
from pipeline.config.plan import read_backbone_plan
from pipeline.networks.prepare import prepare
from pipeline.stages.fetch import fetch
from pipeline.stages.plan import plan
from pipeline.stages.report import report
from pipeline.stages.stylize import stylize
fetch(read_params())
plan()
prepare(read_backbone_plan().settings)
stylize("first")
stylize("second")
report()
"""


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind", ["symlink", "hardlink"])
def test_stages_that_are_run_by_hand_leave_the_cache_as_it_is(kind: str, tmp_path: Path) -> None:
    params = small_params()
    params["images"]["mine"] = {"source": "data/own/mine.png"}
    params["experiments"]["second"]["style"] = "mine"
    project = Project.prepared(tmp_path, params)
    save_picture(tmp_path / "data/own/mine.png")
    project.dvc("config", "cache.type", kind)
    project.dvc("repro")
    project.dvc("checkout", "--relink")
    outputs = [path for name in ("data", "reports") for path in (tmp_path / name).rglob("*.*")]
    linked = {
        path.relative_to(tmp_path)
        for path in outputs
        if path.is_symlink() or path.stat().st_nlink > 1
    }
    assert {path.parts[1] for path in linked} >= {"plan", "images", "backbone", "experiments"}
    assert {Path("data/experiments/first/history.csv"), Path("reports/index.html")} <= linked
    before = contents(tmp_path / ".dvc/cache")
    save_picture(tmp_path / "data/own/mine.png", (40, 40))
    project.change(lambda p: p["defaults"].update(evaluations=8, size=40))
    project.change(lambda p: p["backbone"].update(pooling="max"))
    project.change(lambda p: p["figures"]["both"].update(title="Others"))
    project.run(sys.executable, "-c", ALL_STAGES)
    assert contents(tmp_path / ".dvc/cache") == before
    history = tmp_path / "data/experiments/first/history.csv"
    assert history.read_text().count("\n") == 9
    assert "Others" in (tmp_path / "reports/index.html").read_text()
