"""A static page on which people vote for the better of two pictures, without names of presets.

The page works from the disk, without a server. ``vote/`` has its parts. Ratings are computed in
the browser, by ``vote/bradley-terry.js``.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pipeline.files import json_text, sha256, write_text
from pipeline.imaging.picture_files import read_picture, write_png

PARTS = Path(__file__).resolve().parent / "vote"
NAME_LENGTH = 16
"""Hexadecimal digits of a picture's name."""
LARGEST_ORIGINAL = 512
"""Pixels of the long edge of a content or style image on the page, at most."""


class Pair(NamedTuple):
    """A content and a style, by name."""

    content: str
    style: str

    def __str__(self) -> str:
        return f"{self.content} × {self.style}"


def write_page(
    folder: Path,
    originals: Mapping[Pair, tuple[Path, Path]],
    results: Mapping[Pair, Mapping[str, Path]],
) -> None:
    """Writes ``vote.html``, its scripts and its pictures into a folder.

    A picture's name is a hash and its file has no metadata, so that neither gives the preset away.
    Which preset made it is in the page's source, for the ratings.

    Args:
        folder: is created; a folder ``pictures`` in it is replaced.
        originals: {pair: (content image, style image)}.
        results: {pair: {preset: picture}}.
    """
    pictures = folder / "pictures"
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    pairs = []
    for pair, files in originals.items():
        content, style = (_add(file, pictures, largest=LARGEST_ORIGINAL) for file in files)
        made = [[name, _add(file, pictures, salt=name)] for name, file in results[pair].items()]
        pairs.append({"name": str(pair), "content": content, "style": style, "results": made})
    for name in ("vote.css", "vote.js", "bradley-terry.js"):
        shutil.copyfile(PARTS / name, folder / name)
    data = json_text({"pairs": pairs}).replace("<", "\\u003c")  # no tag ends the page's data
    page = (PARTS / "vote.html").read_text("utf-8").replace("{{ data }}", data)
    write_text(folder / "vote.html", page)


def _add(file: Path, folder: Path, largest: int | None = None, salt: str = "") -> str:
    """Writes a picture into the folder and returns its name there.

    ``salt`` lets equal pictures of two presets have two names.
    """
    picture = read_picture(file)
    if largest:
        picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    part = folder / "part.png"
    write_png(picture, part, {})
    digest = hashlib.sha256(f"{sha256(part)} {salt}".encode()).hexdigest()
    return part.replace(folder / f"{digest[:NAME_LENGTH]}.png").name
