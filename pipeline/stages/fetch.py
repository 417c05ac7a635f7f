"""Stage ``fetch``: the pictures of one experiment → ``data/images/NAME``, upright 8-bit sRGB.

A cell of its own for each experiment: only pictures that an experiment names are fetched, and one
that fails leaves the others. What was downloaded is kept and never downloaded twice.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from pipeline import paths
from pipeline.errors import UserError, command_line, nearest
from pipeline.files import sha256
from pipeline.params import read_params
from pipeline.pictures import read_picture, write_png
from pipeline.schema import Params
from pipeline.sources import forget_download, locate
from pipeline.status import recording_failure


def fetch(experiment: str, params: Params) -> None:
    """Writes ``content.png`` and ``style.png``, with source and hash in the PNG's text.

    Raises:
        UserError: no such experiment, or nothing usable at a source; its picture is not written.
    """
    if experiment not in params.experiments:
        known = list(params.experiments)
        hint = nearest(experiment, known)
        raise UserError(
            f"no experiment {experiment!r}{hint} The experiments are {', '.join(known)}"
        )
    settings = params.experiments[experiment]
    with recording_failure(experiment):
        for role, name in (("content", settings.content), ("style", settings.style)):
            source = params.images[name].source
            try:
                _fetch_one(name, params, experiment, role)
            except UserError as error:
                raise UserError(f"image {name!r} from {source}: {error}") from error


def _fetch_one(name: str, params: Params, experiment: str, role: str) -> None:
    image, downloads = params.images[name], paths.downloads()
    file = locate(image.source, image.hash, downloads)
    try:
        picture = read_picture(file)
    except UserError:
        forget_download(file, downloads)
        raise
    text = {"Source": image.source, "Source-SHA256": sha256(file)}
    write_png(picture, paths.picture(experiment, role), text)
    width, height = picture.size
    print(f"{name}: {width}x{height} pixels from {image.source} (sha256:{text['Source-SHA256']})")


def main(arguments: Sequence[str]) -> NoReturn:
    """Runs the stage for the experiment that the arguments name, and exits."""
    command_line(lambda: fetch(arguments[0], read_params()))


if __name__ == "__main__":
    main(sys.argv[1:])
