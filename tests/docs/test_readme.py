"""The README is true: its commands exist, its settings are valid, its links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, write_params

from pipeline.config.params import read_params

PAGES = ["README.md", "benchmarks/README.md", "pipeline/embedded/README.md"]


def text_of(page: str) -> str:
    return (REPOSITORY / page).read_text("utf-8")


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", text_of(page), flags=re.DOTALL)


def commands() -> list[str]:
    lines = [
        line for page in PAGES for block in blocks(page, "console") for line in block.split("\n")
    ]
    lines += re.findall(r"`((?:make|dvc|python -m) [^`]+)`", "\n".join(map(text_of, PAGES)))
    return sorted({line.partition("  #")[0].strip() for line in lines if line.strip()})


@pytest.mark.parametrize("command", commands())
def test_command_exists(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]) is not None
    elif words[0] == "dvc":
        known = [word for word in words[1:] if re.fullmatch(r"[a-z]+", word)][:2]
        options = [word.partition("=")[0] for word in words if word.startswith("-")]
        taken = known if known[0] in ("exp", "remote", "metrics", "plots") else known[:1]
        answer = subprocess.run(
            [sys.executable, "-m", "dvc", *taken, "--help"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, answer.stderr
        assert all(option in answer.stdout for option in options)
    else:
        assert words[0] in ("git", "source", "pip", "wandb")


def test_yaml_examples_are_valid_parameters(tmp_path: Path) -> None:
    examples = [yaml.safe_load(block) for block in blocks("README.md", "yaml")]
    assert len(examples) == 2
    for example in examples:
        params: Any = yaml.safe_load((REPOSITORY / "params.yaml").read_text("utf-8"))
        for section, content in example.items():
            params[section].update(content)
        write_params(tmp_path, params)
        read_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", text_of(page)):
        assert target.startswith("https://") or ((REPOSITORY / page).parent / target).exists(), (
            target
        )


def test_params_yaml_explains_every_setting() -> None:
    text = (REPOSITORY / "params.yaml").read_text("utf-8")
    params = read_params(REPOSITORY / "params.yaml")
    assert params.distillation is not None
    for section in (
        params.backbone,
        params.defaults,
        params.defaults.lbfgs,
        params.distillation,
        params.tracking,
    ):
        for key in type(section).model_fields:
            assert re.search(rf"^ +{key}:", text, re.MULTILINE), key
