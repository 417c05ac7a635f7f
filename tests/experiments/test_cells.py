"""DVC runs the cells of grids: each value once, under its own name."""

from __future__ import annotations

from pathlib import Path

from projects import Project, small_params

EDITS_MEANWHILE = """
import sys
from pathlib import Path

from pipeline.experiments import runner

def compute(*arguments, compute=runner._compute):
    failed = compute(*arguments)
    file = Path("params.yaml")
    file.write_text(file.read_text().replace("over:", f"over:\\n      seed: {sys.argv[1]}"))
    return failed

if __name__ == "__main__":  # a worker process imports this too
    runner._compute = compute
    runner.run()
"""
"""Runs the experiments, and adds an axis to the grid while they are computed."""


def test_other_values_of_an_axis_run_the_new_cells_alone(tmp_path: Path) -> None:
    params = small_params() | {"figures": {}}
    del params["experiments"]["second"]
    project = Project.prepared(tmp_path, params, computing=False)
    grid = {"base": "first", "over": {"content_weight": [0.5, 2], "style": ["gravel"]}}
    project.change(lambda p: p["grids"].update(ratios=grid))
    text = project.dvc("repro", check=False)
    assert "Nothing is lost: run `dvc repro` again" in text
    assert "Running stage 'stylize" not in text
    cells = {"stylize@ratios-0.5-gravel", "stylize@ratios-2-gravel"}
    assert project.repro() == {"plan", "stylize@first", *cells, "report"}
    project.change(lambda p: p["grids"]["ratios"]["over"].update(content_weight=[3, 0.5]))
    text = project.python("pipeline", "run")
    assert "1 experiment to compute" in text
    assert "ratios-3-gravel: total loss" in text
    assert (project.folder / "data/removed/ratios-2-gravel/image.png").is_file()
    assert "experiments/ratios-3-gravel.html" in (project.folder / "reports/index.html").read_text()
    assert project.repro() == set()
    (project.folder / "meanwhile.py").write_text(EDITS_MEANWHILE)
    project.change(lambda p: p["grids"]["ratios"]["over"].update(content_weight=[3, 0.5, 1]))
    assert "was edited meanwhile: run again" in project.python("meanwhile", "0..1")
    assert not (project.folder / "data/plan/ratios-3-gravel-1.json").exists()
    text = project.python("pipeline", "run")
    assert "6 experiments to compute" in text
    assert project.repro() == set()
