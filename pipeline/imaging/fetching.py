"""Fetches the pictures of the catalogue into ``data/images``, as upright 8-bit sRGB PNG files.

They keep their transparency, which ``read_picture`` composites on white.
"""

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from pipeline import paths
from pipeline.errors import UserError
from pipeline.files import read_json, sha256, write_json
from pipeline.imaging.downloads import locate
from pipeline.imaging.picture_files import read_text, read_with_alpha, write_png

OWN_PICTURES = Path("data/own")  # which DVC watches


def fetch_images(images: Mapping[str, tuple[str, str | None]], code: str) -> dict[str, str]:
    """Writes ``data/images/NAME.png`` for each picture that has changed since the last call.

    A picture that is no longer at its URL, or at its path outside ``data/own``, is kept as it is:
    DVC may have brought it into a clone of the repository.

    Args:
        images: {name: (source, known hash)}, as ``downloads.locate`` takes them.
        code: hash of the code that reads pictures; after a change all of them are read again.

    Returns:
        {name: error} of those that could not be fetched.
    """
    records: dict[str, dict[str, str]] = read_json(paths.FETCH_RECORDS)
    for name, source in images.items():
        try:
            records[name] = _fetch(name, *source, code, records.get(name, {}))
        except UserError as error:
            records[name] = {"error": f"image {name!r} from {source[0]}: {error}"}
    write_json(paths.FETCH_RECORDS, records)
    return {name: records[name]["error"] for name in images if "error" in records[name]}


def remove_other_images(names: Collection[str]) -> None:
    """Removes everything from ``data/images`` but the pictures of these names."""
    wanted = {paths.picture(name) for name in names}
    for path in paths.IMAGES.glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        elif path not in wanted:
            path.unlink()


def _fetch(
    name: str, source: str, known_hash: str | None, code: str, before: Mapping[str, str]
) -> dict[str, str]:
    """Writes a picture unless its record is the one before, and returns its record."""
    target = paths.picture(name)
    text = {"Source": source, "Pin": known_hash or ""}
    try:
        file = locate(source, known_hash, paths.downloads())
    except UserError as error:
        if not _may_be_kept(target, text):
            raise
        print(f"{name}: kept as it is. {error}")
        return {}
    if before and before == _record(text, code, file, target):
        return dict(before)
    try:
        picture = read_with_alpha(file)
    except UserError:
        if file.parent == paths.downloads():
            file.unlink(missing_ok=True)  # so that it is downloaded again
        raise
    write_png(picture, target, {**text, "Source-SHA256": sha256(file)})
    print(f"{name}: {picture.width}x{picture.height} pixels from {source}")
    return _record(text, code, file, target)


def _record(text: Mapping[str, str], code: str, file: Path, target: Path) -> dict[str, str]:
    try:
        return {**text, "code": code, "file": sha256(file), "picture": sha256(target)}
    except OSError:  # not there yet; of a file that cannot be read, read_with_alpha says more
        return {}


def _may_be_kept(target: Path, text: Mapping[str, str]) -> bool:
    """Returns whether a picture comes from this source, which is gone and is not watched."""
    if not target.is_file() or not text.items() <= read_text(target).items():
        return False
    path = Path(text["Source"]).expanduser()
    return not path.exists() and not path.is_relative_to(OWN_PICTURES)
