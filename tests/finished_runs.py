"""A workspace with results of experiments, written without running them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import save_picture, tiny_params, write_params

from pipeline import paths
from pipeline.config.params import read_params
from pipeline.config.plan import write_plans
from pipeline.files import sha256, write_json

MARKUP = "<script>alert('credit')</script>"
LOSSES = {"total": [9.0, 4.0], "content": [8.0, 3.0], "style": [1.0, 1.0], "edges": [0.0, 0.0]}
PARTS = {"content_conv2_2": [8.0, 3.0], "style_conv1_1": [5.0, 2.0]}


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


def write_results(name: str) -> None:
    """Writes the results of an experiment, by its current plan, after two evaluations."""
    folder = paths.EXPERIMENTS / name
    (folder / "intermediates").mkdir(parents=True)
    for width, file in enumerate(
        ("image", "intermediates/00001", "intermediates/00004"), len(name)
    ):
        save_picture(folder / f"{file}.png", (8 * width, 16))
    weighted = {f"{part}_weighted": values for part, values in PARTS.items()}
    losses = LOSSES | PARTS | weighted
    lines = [["stage", "evaluation", "iteration", *losses, "gradient_norm"]]
    for evaluation, values in enumerate(zip(*losses.values(), strict=True), 1):
        lines.append(["main", evaluation, evaluation - 1, *values, 0.5])
    (folder / "history.csv").write_text("".join(",".join(map(str, x)) + "\n" for x in lines))
    metrics = {f"saved_{loss}": values[-1] for loss, values in LOSSES.items()}
    write_json(folder / "metrics.json", {"evaluations": 2, "earlier_evaluations": 0} | metrics)
    status = {"kind": "budget", "reason": "all 2 evaluations were used", "notes": []}
    write_json(folder / "status.json", status)
    network = {"architecture": "vgg19", "pooling": "avg", "rescale": True, "weights": "w.pth"}
    provenance = {
        "plan": sha256(paths.plan(name)),
        "version": "1",
        "backbone": network | {"weights_sha256": 64 * "1"},
        "inputs": {"weights": sha256(paths.WEIGHTS_FILE)},
        "packages": {"torch": "2"},
        "device": "cpu",
    }
    write_json(folder / "provenance.json", provenance)


def edit_json(file: Path, **changes: Any) -> None:
    write_json(file, json.loads(file.read_text("utf-8")) | changes)
