"""The hash of the code that computes a result, so that an edit re-runs what imports the module."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pipeline

PACKAGE = Path(pipeline.__file__).parent
DISCOVERED = ("pipeline.losses",)
"""Packages that import all modules in their folder, without naming them."""


def code_hash(module: str, data: Iterable[Path] = ()) -> str:
    """Returns the SHA-256 of a module, of all modules of this package that it imports, and of data.

    Args:
        module: for example ``pipeline.stages.report``.
        data: other files that decide the result, such as templates.
    """
    digest = hashlib.sha256()
    for name, file in [*sorted(imported_modules(module).items()), *((f.name, f) for f in data)]:
        digest.update(f"{name}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def imported_modules(module: str) -> dict[str, Path]:
    """Returns {module: its file} of a module and of all that it imports, directly or not."""
    files: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in files:
            continue
        files[name] = _file_of(name)
        waiting += [parent] if (parent := name.rpartition(".")[0]) else []
        waiting += _imports(files[name])
        if name in DISCOVERED:
            waiting += [f"{name}.{file.stem}" for file in files[name].parent.glob("[!_]*.py")]
    return files


def _imports(file: Path) -> Iterator[str]:
    """Yields the modules of this package that a file imports, in its functions too."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{name}" for name in names)]
        for name in names:
            if name.partition(".")[0] == PACKAGE.name and _file_of(name).is_file():
                yield name


def _file_of(name: str) -> Path:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
