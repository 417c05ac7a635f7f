"""Atomic writing of files, reading and writing of JSON, and the hash of a file."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to, and renames it to ``path`` if the block succeeds.

    The folder is created. If the block raises, the temporary file is removed and ``path`` stays as
    it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with naming(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the name of a file to an ``OSError``, which has none when the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or str(path)
        raise


def own_folder(path: Path) -> None:
    """Makes a folder. A symbolic link in its place is removed, so that nothing goes through it."""
    if path.is_symlink():
        path.unlink()
    path.mkdir(parents=True, exist_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def json_text(content: Any) -> str:
    """Returns indented JSON with its keys in the order given."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Writes the JSON of ``json_text``, atomically."""
    write_text(path, json_text(content))


def read_json(path: Path) -> dict[str, Any]:
    """Returns the mapping in a JSON file; {} if there is none, or no such file."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):  # a power cut can leave half a file
        return {}
    return content if isinstance(content, dict) else {}


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
