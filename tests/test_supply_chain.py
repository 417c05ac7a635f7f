"""Nothing that is read is run, and a key that is given is given to nobody."""

from __future__ import annotations

import ast
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb
from conftest import tiny_params, write_params
from test_architecture import MODULES
from test_bad_input import run
from test_tracking import KEY, Server, _fresh_settings, server

__all__ = ["_fresh_settings", "server"]

FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "yaml.unsafe_load",
    "yaml.full_load",
}
UNSAFE_MODULES = ("pickle", "marshal", "shelve")


def called(node: ast.Call) -> str:
    """Returns the dotted name of what is called, empty where it is none."""
    parts, function = [], node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    return ".".join([function.id, *reversed(parts)]) if isinstance(function, ast.Name) else ""


def dangers(text: str) -> list[str]:
    """Returns what a module does that can run what it reads."""
    tree, found = ast.parse(text), []
    loaders = {
        each.name
        for each in ast.walk(tree)
        if isinstance(each, ast.ClassDef) and "yaml.SafeLoader" in map(ast.unparse, each.bases)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None)]
            found += [f"imports {name}" for name in names if name in UNSAFE_MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = called(node)
        options = {each.arg: ast.unparse(each.value) for each in node.keywords}
        if name in FORBIDDEN or options.get("shell", "False") != "False":
            found.append(ast.unparse(node))
        if name == "torch.load" and options.get("weights_only") != "True":
            found.append(ast.unparse(node))
        if name == "YAML" and options.get("typ") != "'safe'":
            found.append(ast.unparse(node))
        safe = {"yaml.SafeLoader", "yaml.CSafeLoader", *loaders}
        if name == "yaml.load" and options.get("Loader") not in safe:
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("module", MODULES)
def test_no_module_runs_what_it_reads(module: str) -> None:
    assert dangers(MODULES[module].read_text("utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "import os; os.system('ls')",
        "import subprocess; subprocess.run('ls', shell=True)",
        "import pickle",
        "from pickle import load",
        "import torch; torch.load('a')",
        "import torch; torch.load('a', weights_only=False)",
        "import yaml; yaml.load('a', Loader=yaml.Loader)",
        "import yaml; yaml.load('a')",
    ],
)
def test_what_would_run_it_is_found(text: str) -> None:
    assert len(dangers(text)) == 1


def tracked_workspace(folder: Path, answers: bool) -> None:
    folder.mkdir()
    params: Any = tiny_params(Path("embedded"))
    params["backbone"] = {"calibration": ["package:skimage/data/coffee.png"], "rescale": False}
    params["tracking"] = {"mode": "online", "init_timeout": 5 if answers else 1}
    params["experiments"] = {"first": params["experiments"]["first"]}
    params["figures"] = {}
    write_params(folder, params)


def move_key_to_netrc(
    file: Path, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(f"machine 127.0.0.1:{server.server_port}\n  login user\n  password {KEY}\n")
    file.chmod(0o600)
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(file))


@pytest.mark.parametrize(
    ("kept_in", "answers"), [("the environment", False), ("netrc", True), ("netrc", False)]
)
def test_key_of_wandb_is_written_nowhere(
    kept_in: str,
    answers: bool,
    server: ThreadingHTTPServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    workspace = tmp_path / "workspace"
    tracked_workspace(workspace, answers)
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(workspace / "config"))
    monkeypatch.setattr(Server, "fault", "" if answers else "never answers")
    if kept_in == "netrc":
        move_key_to_netrc(tmp_path / "netrc", server, monkeypatch)
    for command in ("check", "fetch first", "plan", "backbone", "stylize first", "report"):
        assert run(command, monkeypatch) == 0
    wandb.teardown()
    printed = "".join(capfd.readouterr())
    assert "first: total loss" in printed
    assert KEY not in printed
    assert bool(Server.uploads) == answers
    written = {path: path.read_bytes() for path in workspace.rglob("*") if path.is_file()}
    folders = {path.relative_to(workspace).parts[0] for path in written}
    assert {"data", "reports", "wandb"} <= folders
    written |= {Path(name): body for name, body in Server.uploads.items()}
    assert [path for path, content in written.items() if KEY.encode() in content] == []
