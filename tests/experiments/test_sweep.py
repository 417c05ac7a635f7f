"""The sweep of the documentation: what an agent makes of its command computes one tracked run."""

from __future__ import annotations

import json
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, save_picture
from PIL import Image
from test_tracking import Server, _fresh_settings, server
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from pipeline.__main__ import app

__all__ = ["_fresh_settings", "server"]

TINY = {"size": 32, "evaluations": 3, "device": "cpu", "threads": 1}


def example() -> dict[str, Any]:
    sweep: dict[str, Any] = yaml.safe_load((REPOSITORY / "docs/sweep.yaml").read_text("utf-8"))
    return sweep


def words_of(values: dict[str, Any]) -> list[str]:
    """Returns the words after ``python -m pipeline`` that W&B's agent makes of the command."""
    arguments = create_sweep_command_args({"args": {k: {"value": v} for k, v in values.items()}})
    expanded: list[str] = []
    for word in example()["command"]:
        expanded += arguments[word[2:-1]] if word == "${args}" else [word]
    assert expanded[:4] == ["${env}", "python", "-m", "pipeline"]
    return expanded[4:]


def test_parameters_become_settings() -> None:
    words = words_of({"set=content_weight": 0.5, "set=init": "content"})
    assert words[-2:] == ["--set=content_weight=0.5", "--set=init=content"]
    assert all(name.startswith("set=") for name in example()["parameters"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache" / name)
    Path("data/own").mkdir(parents=True)
    Image.radial_gradient("L").resize((45, 33)).convert("RGB").save("data/own/photo.jpg")
    save_picture(Path("data/own/painting.jpg"))
    return tmp_path


def agent(values: dict[str, Any], run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Does what an agent does for one run, with a tiny picture."""
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", run)
    words = words_of(values | {f"set={key}": value for key, value in TINY.items()})
    app([word for word in words if word != "--size=256"], standalone_mode=False)


def test_command_of_an_agent_computes_the_run_that_it_names(
    folder: Path, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent({"set=content_weight": 0.5, "set=init": "content"}, "first", monkeypatch)
    assert Server.run["name"] == "first"
    assert Server.run["sweep"] == "sweep"
    summary = json.loads(Server.uploads["wandb-summary.json"])
    assert summary["end"] == "budget"
    config = yaml.safe_load(Server.uploads["config.yaml"])
    assert config["settings"]["value"]["content_weight"] == 0.5
    assert config["settings"]["value"]["init"] == "content"
    assert (folder / "photo-painting.png").is_file()
    assert list((folder / "wandb").glob("run-*-first"))


def test_command_without_an_agent_is_not_tracked(folder: Path, server: ThreadingHTTPServer) -> None:
    words = words_of({f"set={key}": value for key, value in TINY.items()})
    app([word for word in words if word != "--size=256"], standalone_mode=False)
    assert Server.run == {}
    assert not (folder / "wandb").exists()
