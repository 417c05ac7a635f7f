"""Stage ``code``: for every stage that runs by itself the hashes of its code → ``data/code``.

A stage depends on its one file there, so that an edit runs again what imports it and nothing else.
To name twenty modules under each cell instead would make ``dvc.lock``, which DVC reads and writes
after every cell, several times as long.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pipeline
from pipeline import paths
from pipeline.files import sha256, write_json
from pipeline.stages import run_stage

PACKAGE = Path(pipeline.__file__).parent
STAGES = "plan", "fetch", "backbone", "stylize", "report"


def record_code() -> None:
    """Writes {module: its SHA-256} for each stage."""
    for stage in STAGES:
        hashes = {name: sha256(file) for name, file in sorted(modules_of(stage).items())}
        write_json(paths.CODE / f"{stage}.json", hashes)


def modules_of(stage: str) -> dict[str, Path]:
    """Returns the file of each module of this package that a stage imports, itself among them."""
    found: dict[str, Path] = {}
    waiting = [f"pipeline.stages.{stage}"]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = _file_of(name)
            waiting += imported(found[name])
            waiting += [name.rpartition(".")[0]] if "." in name else []
    return found


def imported(file: Path) -> Iterator[str]:
    """Yields the modules of this package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            yield from (name for name in names if name.partition(".")[0] == "pipeline")
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("pipeline"):
            continue
        yield str(node.module)
        yield from (
            f"{node.module}.{alias.name}"
            for alias in node.names
            if _file_of(f"{node.module}.{alias.name}").is_file()
        )


def _file_of(name: str) -> Path:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


if __name__ == "__main__":
    run_stage(record_code)
