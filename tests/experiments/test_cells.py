"""DVC runs the cells of grids: each value once, under its own name."""

from __future__ import annotations

from pathlib import Path

from projects import Project, small_params


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
    assert "1 experiments to compute" in text
    assert "ratios-3-gravel: total loss" in text
    assert (project.folder / "data/removed/ratios-2-gravel/image.png").is_file()
    assert "experiments/ratios-3-gravel.html" in (project.folder / "reports/index.html").read_text()
    assert project.repro() == set()
