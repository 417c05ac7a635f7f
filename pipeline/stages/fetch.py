"""Stage ``fetch``: the pictures that experiments name → ``data/images``, upright 8-bit sRGB.

    python -m pipeline.stages.fetch [EXPERIMENT …]

Those of the catalogue that no experiment names stay where they are. What was downloaded is kept;
where that is gone, and its address too, as in a clone, the picture that DVC brought is kept.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Sequence
from itertools import chain
from pathlib import Path
from typing import NoReturn

from PIL.Image import Image

from pipeline import paths
from pipeline.config.params import find_experiment, read_params
from pipeline.config.schema import CataloguedImage, Params
from pipeline.errors import UserError
from pipeline.files import sha256
from pipeline.imaging.picture_files import read_picture, read_text, write_png
from pipeline.imaging.sources import forget_download, locate
from pipeline.records.status import record_failure
from pipeline.stages import run_stage


def fetch(params: Params, names: Sequence[str] = ()) -> None:
    """Writes ``NAME.png`` for every picture, with source and hash in the PNG's text.

    Args:
        params: the catalogue and the experiments.
        names: the experiments whose pictures are wanted; none: all.

    Raises:
        UserError: no such experiment, or nothing usable at some sources: all of them are named, and
            the other pictures are there.
    """
    experiments = {name: find_experiment(params, name) for name in names or params.experiments}
    named = {name: dict.fromkeys([each.content, each.style]) for name, each in experiments.items()}
    missing: dict[str, str] = {}
    if not names:
        _clear({paths.picture(image) for image in chain.from_iterable(named.values())})
    for image in dict.fromkeys(chain.from_iterable(named.values())):
        try:
            _fetch(image, params.images[image])
        except UserError as error:
            missing[image] = f"image {image!r} from {params.images[image].source}: {error}"
    for name, images in named.items():
        if reasons := [missing[image] for image in images if image in missing]:
            record_failure(name, "\n".join(reasons))
    if missing:
        raise UserError("\n".join(missing.values()))


def _clear(wanted: Collection[Path]) -> None:
    """Removes what earlier runs left and nobody asks for."""
    for path in paths.IMAGES.glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        elif path not in wanted:
            path.unlink()


def _fetch(name: str, image: CataloguedImage) -> None:
    try:
        file = locate(image.source, image.hash, paths.downloads())
    except UserError as error:
        if not _kept(name, image):
            raise
        print(f"{name}: kept as it is. {error}")
        return
    picture = _read_or_forgotten(file)
    text = {"Source": image.source, "Pin": image.hash or "", "Source-SHA256": sha256(file)}
    width, height = picture.size
    print(f"{name}: {width}x{height} pixels from {image.source} (sha256:{text['Source-SHA256']})")
    write_png(picture, paths.picture(name), text)


def _kept(name: str, image: CataloguedImage) -> bool:
    """Returns whether the picture is there, of the same entry, from where nothing watches."""
    file = paths.picture(name)
    text = read_text(file) if file.is_file() else {}
    if (text.get("Source"), text.get("Pin")) != (image.source, image.hash or ""):
        return False
    source = Path(image.source).expanduser()
    return not source.exists() and not source.is_relative_to("data/own")


def _read_or_forgotten(file: Path) -> Image:
    try:
        return read_picture(file)
    except UserError:
        forget_download(file, paths.downloads())
        raise


def main(arguments: Sequence[str]) -> NoReturn:
    """Runs the stage for the experiments that the arguments name, or for all, and exits."""
    run_stage(lambda: fetch(read_params(), arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
