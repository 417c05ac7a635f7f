"""Stage ``fetch``: the pictures of one experiment → ``data/images/NAME``, upright 8-bit sRGB.

A cell of its own for each experiment: only pictures that an experiment names are fetched, and one
that fails leaves the others. What was downloaded is kept and never downloaded twice.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from PIL.Image import Image

from pipeline import paths
from pipeline.errors import UserError, command_line, nearest, one_experiment
from pipeline.files import sha256
from pipeline.params import read_params
from pipeline.pictures import read_picture, write_png
from pipeline.schema import Params
from pipeline.sources import forget_download, locate
from pipeline.status import recording_failure


def fetch(experiment: str, params: Params) -> None:
    """Writes ``content.png`` and ``style.png``, with source and hash in the PNG's text.

    Raises:
        UserError: no such experiment, or nothing usable at a source; no picture is written then.
    """
    if experiment not in params.experiments:
        known = list(params.experiments)
        hint = nearest(experiment, known)
        raise UserError(
            f"no experiment {experiment!r}{hint} The experiments are {', '.join(known)}"
        )
    settings = params.experiments[experiment]
    with recording_failure(experiment):
        names = {"content": settings.content, "style": settings.style}
        found = {role: _found(name, params) for role, name in names.items()}
        for role, (picture, text) in found.items():
            write_png(picture, paths.picture(experiment, role), text)


def _found(name: str, params: Params) -> tuple[Image, dict[str, str]]:
    """Returns the picture of that name in the catalogue, and the text to save with it."""
    image = params.images[name]
    try:
        file = locate(image.source, image.hash, paths.downloads())
        picture = _read_or_forgotten(file)
    except UserError as error:
        raise UserError(f"image {name!r} from {image.source}: {error}") from error
    text = {"Source": image.source, "Source-SHA256": sha256(file)}
    width, height = picture.size
    print(f"{name}: {width}x{height} pixels from {image.source} (sha256:{text['Source-SHA256']})")
    return picture, text


def _read_or_forgotten(file: Path) -> Image:
    try:
        return read_picture(file)
    except UserError:
        forget_download(file, paths.downloads())
        raise


def main(arguments: Sequence[str]) -> NoReturn:
    """Runs the stage for the experiment that the arguments name, and exits."""
    command_line(lambda: fetch(one_experiment(arguments), read_params()))


if __name__ == "__main__":
    main(sys.argv[1:])
