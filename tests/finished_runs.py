"""A workspace with results of experiments, written without running them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import save_picture, tiny_params, write_params
from uncomputed_run import write_results

from pipeline import paths
from pipeline.config.params import read_params
from pipeline.config.plan import write_plans
from pipeline.files import write_json

MARKUP = "<script>alert('credit')</script>"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two finished experiments, and with markup in titles and credits."""
    folder = tmp_path_factory.mktemp("finished")
    params = experiments_with_markup()
    with contextlib.chdir(folder):
        for file in (paths.WEIGHTS_FILE, paths.EMBEDDED_FILE):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(file.name.encode())
        paths.IMAGES.mkdir()
        for width, name in enumerate(("chelsea", "coffee", "gravel"), 48):
            save_picture(paths.picture(name), (width, 32))
        plan_experiments(params)
        for name in ("first", "second"):
            write_results(name)
    return folder


def experiments_with_markup() -> dict[str, Any]:
    params: dict[str, Any] = tiny_params(Path("vgg19.safetensors"))
    params["images"]["coffee"]["credit"] = MARKUP
    params["images"]["gravel"] |= {"licence": MARKUP}
    params["figures"]["both"] |= {"caption": MARKUP, "title": MARKUP, "measure": "trade-off"}
    params["figures"]["both"] |= {"row_titles": [MARKUP], "column_titles": [MARKUP, "α/β"]}
    params["tracking"] = {"mode": "disabled"}
    return params


def plan_experiments(params: dict[str, Any]) -> None:
    """Writes params.yaml and the plans of the experiments whose pictures are there."""
    write_params(Path(), params)
    write_plans(read_params(), skip_missing=True)


def edit_json(file: Path, **changes: Any) -> None:
    write_json(file, json.loads(file.read_text("utf-8")) | changes)
