"""The documentation is true: commands parse, settings are valid, links lead somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, write_params

from pipeline.config.params import read_params

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "reports/README.md",
    "pipeline/embedded/README.md",
    *(str(page.relative_to(REPOSITORY)) for page in sorted(REPOSITORY.glob("docs/*.md"))),
]
RESULTS = [
    str(page.relative_to(REPOSITORY)) for page in sorted(REPOSITORY.glob("benchmarks/results/*.md"))
]
OTHER_PROGRAMS = "git", "pip", "pre-commit", "ray", "source", "wandb"


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


def examples() -> list[tuple[str, dict[str, Any]]]:
    return [(page, yaml.safe_load(block)) for page in PAGES for block in blocks(page, "yaml")]


def starting(*words: str) -> list[str]:
    return [command for command in commands() if command.split()[: len(words)] == list(words)]


def params() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(text_of("params.yaml"))
    return content


def makefile() -> str:
    return text_of("Makefile")


def targets() -> list[str]:
    return re.findall(r"^([a-z]+):", makefile(), re.MULTILINE)


def merged(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns the content with the changes in it, key by key at every depth."""
    both = dict(content)
    for key, value in changes.items():
        inner = both.get(key)
        nested = isinstance(inner, dict) and isinstance(value, dict)
        both[key] = merged(inner, value) if nested else value
    return both


def check_params(folder: Path, content: dict[str, Any]) -> None:
    write_params(folder, content)
    read_params(folder / "params.yaml")


def test_every_command_is_of_a_known_program() -> None:
    for command in commands():
        assert command.split()[0] in ("make", "dvc", "python", *OTHER_PROGRAMS), command


@pytest.mark.parametrize("command", starting("make"))
def test_make_command_has_a_target_and_known_variables(command: str) -> None:
    target, *variables = shlex.split(command)[1:]
    assert target in targets()
    for variable in variables:
        assert f"$({variable.partition('=')[0]})" in makefile(), variable


@pytest.mark.parametrize("command", starting("dvc"))
def test_dvc_takes_the_command(command: str) -> None:
    from dvc.cli import parse_args

    arguments = parse_args(shlex.split(command)[1:])
    if arguments.cmd == "repro":
        stages = yaml.safe_load(text_of("dvc.yaml"))["stages"]
        experiments = set(params()["experiments"])
        experiments |= {name for _, each in examples() for name in each.get("experiments", {})}
        for target in arguments.targets:
            stage, _, experiment = target.partition("@")
            assert stage in stages
            assert not experiment or experiment in experiments


@pytest.mark.parametrize(
    "command", [each for each in starting("dvc", "exp", "run") if " -S " in each]
)
def test_dvc_sets_settings_that_exist(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    key, _, values = words[words.index("-S") + 1].partition("=")
    *sections, name = key.lstrip("+").split(".")
    for value in values.split(","):
        content = params()
        section = content
        for each in sections:
            section = section[each]
        assert (name in section) is not key.startswith("+"), "a + adds a key that is not there"
        section[name] = yaml.safe_load(value)
        check_params(tmp_path, content)


@cache
def help_of(*command: str) -> str:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *command, "--help"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", starting("python"))
def test_python_command_and_its_options_exist(command: str) -> None:
    module, *arguments = shlex.split(command)[2:]
    options = [word.partition("=")[0] for word in arguments if word.startswith("-")]
    if module == "pipeline":
        known = help_of(module, *arguments[: 2 if arguments[0] == "preset" else 1])
        assert "Usage" in known
    else:
        specification = importlib.util.find_spec(module)
        assert specification is not None
        assert specification.origin is not None
        known = Path(specification.origin).read_text("utf-8")
    assert all(option in known for option in options)


@pytest.mark.parametrize(("page", "example"), examples())
def test_yaml_example_is_valid_in_params_yaml(
    page: str, example: dict[str, Any], tmp_path: Path
) -> None:
    assert set(example) <= set(params())
    check_params(tmp_path, merged(params(), example))


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub gives to a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return {
        f"{slug}-{slugs[:place].count(slug)}" if slug in slugs[:place] else slug
        for place, slug in enumerate(slugs)
    }


@pytest.mark.parametrize("page", [*PAGES, *RESULTS])
def test_links_lead_to_files_and_headings(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_readme_is_short_and_begins_with_the_users_own_pictures() -> None:
    text = text_of("README.md")
    assert len(text.split()) <= 900
    first_screen = text.partition("\n## ")[0]
    assert "data/own/" in first_screen
    assert "make repro" in first_screen
    assert first_screen.count("\n") <= 40


def test_readme_leads_to_every_page() -> None:
    for page in PAGES:
        if page.startswith(("docs/", "benchmarks/", "CONTRIBUTING")):
            assert f"({page}" in text_of("README.md"), page


def test_readme_names_the_versions_of_python_that_the_package_is_for() -> None:
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    versions = [each.rpartition(" :: ")[2] for each in project["classifiers"] if "Python" in each]
    assert project["requires-python"] == f">={versions[0]}"
    assert f"Python {versions[0]} to {versions[-1]}" in text_of("README.md")


def test_make_lists_its_targets() -> None:
    def printed(*words: str) -> str:
        command = ["make", "--no-print-directory", *words]
        return subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout

    listed = re.findall(r"^make ([a-z]+) +\S", printed("help"), re.MULTILINE)
    assert listed == targets()
    assert printed() == printed("help")


def test_make_lint_checks_the_layers() -> None:
    recipe = makefile().partition("\nlint:")[2].partition("\n\n")[0]
    commands = {line.strip().removeprefix("$(BIN)/") for line in recipe.split("\n")}
    assert {"ruff check", "mypy", "lint-imports --no-cache"} <= commands


def made(folder: Path, target: str, shell: Path) -> None:
    """Makes a target in a folder with a copy of the Makefile and an environment that records.

    ``shell`` is written, and runs the recipes without the PATH that a Makefile exports.
    """
    shell.write_text('#!/bin/sh\nPATH=/usr/bin:/bin exec /bin/sh "$@"\n')
    shell.chmod(0o755)
    binaries = folder / ".venv/bin"
    binaries.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(REPOSITORY / "Makefile", folder / "Makefile")
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).touch()
    (folder / ".venv/installed").touch()
    for program in ("python", "ruff", "mypy", "lint-imports"):
        script = binaries / program
        # What a stage of dvc.yaml would take for `python` is written down with the command.
        script.write_text(
            f'#!/bin/sh\necho "{program} $* ($(command -v python))" >> commands.txt\n'
        )
        script.chmod(0o755)
    make = shutil.which("make")
    assert make is not None
    subprocess.run(
        [make, target, f"SHELL={shell}"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
    )


@pytest.mark.parametrize(
    ("target", "programs"),
    [
        ("repro", ["python -m pipeline run"]),
        ("paper", ["python -m pipeline preset paper", "python -m pipeline run"]),
        ("distil", ["python -m pipeline.stages.distil"]),
        ("lint", ["ruff check", "ruff format --check", "mypy", "lint-imports --no-cache"]),
    ],
)
@pytest.mark.parametrize("name", ["plain", 'it\'s "a" $folder'])
def test_make_runs_the_environments_programs(
    target: str, programs: list[str], name: str, tmp_path: Path
) -> None:
    """They are called by path: the make of macOS does not look for them in an exported PATH."""
    folder = tmp_path / name
    folder.mkdir()
    made(folder, target, tmp_path / "shell")
    lines = (folder / "commands.txt").read_text().splitlines()
    assert [line.partition(" (")[0].strip() for line in lines] == programs
    if target != "lint":
        assert all(line.endswith(f"({folder}/.venv/bin/python)") for line in lines)


def test_make_clean_removes_the_results(tmp_path: Path) -> None:
    results = "wandb/offline-run-1", "data/experiments/a", "reports/media", "data/plan"
    own = "data/own", "data/paintings", ".venv/lib"
    for folder in (*results, *own):
        (tmp_path / folder).mkdir(parents=True)
    made(tmp_path, "clean", tmp_path / "shell")
    assert [folder for folder in results if (tmp_path / folder).exists()] == []
    assert all((tmp_path / folder).is_dir() for folder in own)


def rows_after(heading: str, page: str) -> list[str]:
    """Returns the first cells of the first table under a heading."""
    section = text_of(page).partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.split("\n") if line.startswith("| ")]
    return [row.split("|")[1].strip() for row in rows[1:]]


def test_every_loss_term_has_a_row() -> None:
    from pipeline.losses import loss_terms

    assert rows_after("The loss", "docs/method.md") == [f"`{term.name}`" for term in loss_terms()]


def test_architecture_lists_the_packages_in_the_order_of_their_layers() -> None:
    contract = tomllib.loads(text_of("pyproject.toml"))["tool"]["importlinter"]["contracts"][0]
    layers = [re.findall(r"pipeline\.(\w+)", layer) for layer in contract["layers"]]
    rows = rows_after("Packages", "docs/architecture.md")
    assert [re.findall(r"\[`(\w+)(?:\.py)?`\]", row) for row in rows] == layers


def test_every_stage_is_described() -> None:
    rows = rows_after("Stages", "docs/architecture.md")
    described = [re.findall(r"`(\w+)", row)[0] for row in rows]
    assert sorted(described) == sorted(yaml.safe_load(text_of("dvc.yaml"))["stages"])


def test_an_experiment_passes_at_most_twelve_files() -> None:
    section = text_of("docs/architecture.md").partition("## From plan to picture")[2]
    files = re.findall(r"^\d+\. \[`([\w/]+\.py)`\]", section, re.MULTILINE)
    assert 0 < len(files) == len(set(files)) <= 12


def test_params_yaml_explains_every_setting() -> None:
    text = text_of("params.yaml")
    checked = read_params(REPOSITORY / "params.yaml")
    assert checked.distillation is not None
    for section in (
        checked.backbone,
        checked.defaults,
        checked.defaults.lbfgs,
        checked.defaults.output,
        checked.distillation,
        checked.tracking,
        checked.checkpoints,
    ):
        for key in type(section).model_fields:
            assert re.search(rf"^ +{key}:", text, re.MULTILINE), key
