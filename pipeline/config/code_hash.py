"""The hash of the code that computes a result: an edit re-runs what imports the edited module."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pipeline

PACKAGE = Path(pipeline.__file__).parent
DISCOVERED = ("pipeline.losses",)
"""Packages whose modules are found in their folder, not named by an import."""


def code_hash(module: str, data: Iterable[Path] = ()) -> str:
    """Returns the SHA-256 of a module, of all modules of this package that it imports, and of data.

    Args:
        module: for example ``pipeline.stages.report``.
        data: files that the modules read, such as templates; their paths do not count.
    """
    digest = hashlib.sha256()
    for name, file in sorted(imported_modules(module).items()):
        digest.update(f"{name}\n".encode() + file.read_bytes())
    for file in data:
        digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def imported_modules(module: str) -> dict[str, Path]:
    """Returns {module: its file} of a module and of those that it imports, directly or not.

    Args:
        module: for example ``pipeline.stages.report``.
    """
    files: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in files:
            continue
        files[name] = _file_of(name)
        waiting += _imports(files[name])
        waiting += [name.rpartition(".")[0]] if "." in name else []
        if name in DISCOVERED:
            waiting += [f"{name}.{file.stem}" for file in files[name].parent.glob("[!_]*.py")]
    return files


def _imports(file: Path) -> Iterator[str]:
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
