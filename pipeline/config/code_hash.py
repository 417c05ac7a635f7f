"""The hash of the code that computes a result, so that an edit re-runs what imports the module."""

import hashlib
from collections.abc import Iterable
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

import pipeline
from pipeline import losses

PACKAGE = Path(pipeline.__file__).parent


def code_hash(module: str, data: Iterable[Path] = ()) -> str:
    """Returns the SHA-256 of a module, of all modules of this package that it imports, and of data.

    ``data`` are other files that decide the result, such as templates.
    """
    digest = hashlib.sha256()
    for name, file in [*sorted(imported_modules(module).items()), *((f.name, f) for f in data)]:
        digest.update(f"{name}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def imported_modules(module: str) -> dict[str, Path]:
    """Returns {module: its file} of a module and of all that it imports, in its functions too."""
    finder = _OwnModules(path=[str(PACKAGE.parent)])
    finder.import_hook(module)
    if losses.__name__ in finder.modules:  # which imports modules without naming them
        for package in losses.TERM_PACKAGES:
            for file in (PACKAGE.parent / package.replace(".", "/")).glob("*.py"):
                finder.import_hook(f"{package}.{file.stem}".removesuffix(".__init__"))
    return {name: Path(vars(each)["__file__"]) for name, each in finder.modules.items()}


class _OwnModules(ModuleFinder):
    """Finds the modules of this package, and of no other."""

    def find_module(self, name: str, path: Any, parent: Any = None) -> Any:
        if path is None and name != PACKAGE.name:
            raise ImportError(name)
        return super().find_module(name, path, parent)
