"""HEIC and AVIF pictures are read like the other formats."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from hostile import encoded
from numpy.typing import NDArray
from picture_encoders import wide_gamut_profile
from PIL import Image

from pipeline.errors import UserError
from pipeline.imaging.picture_files import read_picture, read_with_alpha

KINDS = ["HEIF", "AVIF"]
LOSSY = 12
"""The largest difference of a value that these encoders make on a smooth picture."""


def smooth(size: tuple[int, int] = (48, 32)) -> Image.Image:
    """Returns a picture whose corners differ, so that its orientation shows."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    return Image.fromarray(np.uint8(255 * np.stack([x, y, 1 - x * y], -1)))


def stored(picture: Image.Image, kind: str, folder: Path, **options: Any) -> Path:
    path = folder / f"picture.{kind.lower()}"
    path.write_bytes(encoded(picture, kind, quality=95, **options))
    return path


def read_or_refusal(path: Path) -> Image.Image | str:
    try:
        return read_picture(path)
    except UserError as error:
        return str(error)


def difference(one: Image.Image, other: Image.Image) -> float:
    pixels: list[NDArray[Any]] = [np.asarray(each, float) for each in (one, other)]
    assert pixels[0].shape == pixels[1].shape
    return float(np.abs(pixels[0] - pixels[1]).max())


@pytest.mark.parametrize("kind", KINDS)
def test_picture_is_read(kind: str, tmp_path: Path) -> None:
    picture = smooth()
    read = read_picture(stored(picture, kind, tmp_path))
    assert (read.mode, read.info) == ("RGB", {})
    assert difference(read, picture) <= LOSSY


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(orientation: int, kind: str, tmp_path: Path) -> None:
    turns = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    as_stored, turn = smooth(), turns[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = stored(as_stored, kind, tmp_path, exif=exif.tobytes())
    boxes = {1: [], 2: [b"imir"], 3: [b"irot"], 6: [b"irot"], 8: [b"irot"]}
    assert all(box in path.read_bytes() for box in boxes.get(orientation, [b"imir"]))
    upright = as_stored if turn is None else as_stored.transpose(turn)
    assert difference(read_picture(path), upright) <= LOSSY


def test_heic_is_not_turned_by_its_exif_data(tmp_path: Path) -> None:
    """What turns it stands elsewhere in the file (ISO/IEC 23008-12), and phones write both."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = stored(smooth(), "HEIF", tmp_path, exif=exif)
    assert b"irot" not in path.read_bytes()
    assert difference(read_picture(path), smooth()) <= LOSSY


@pytest.mark.parametrize("kind", KINDS)
def test_profile_is_converted(kind: str, tmp_path: Path) -> None:
    colour = Image.new("RGB", (16, 16), (120, 90, 60))
    colour.save(tmp_path / "same.png", icc_profile=wide_gamut_profile())
    path = stored(colour, kind, tmp_path, icc_profile=wide_gamut_profile())
    assert difference(read_picture(path), read_picture(tmp_path / "same.png")) <= 4
    assert difference(read_picture(path), colour) > 8


@pytest.mark.parametrize("kind", KINDS)
def test_transparency_is_composited_on_white_or_kept(kind: str, tmp_path: Path) -> None:
    picture = Image.new("RGBA", (32, 16), (200, 0, 0, 255))
    picture.paste((0, 0, 200, 0), (0, 0, 16, 16))
    path = stored(picture, kind, tmp_path)
    read = read_picture(path)
    assert read.getpixel((2, 8)) == pytest.approx((255, 255, 255), abs=2)
    assert read.getpixel((30, 8)) == pytest.approx((200, 0, 0), abs=LOSSY)
    alpha = read_with_alpha(path).getchannel("A")
    assert (alpha.getpixel((2, 8)), alpha.getpixel((30, 8))) == (0, 255)


def test_main_picture_of_a_heic_with_several_is_read(tmp_path: Path) -> None:
    others = [Image.new("RGB", (16, 16), each) for each in ("red", "blue")]
    path = stored(
        others[0], "HEIF", tmp_path, save_all=True, append_images=others[1:], primary_index=1
    )
    assert read_picture(path).getpixel((8, 8)) == pytest.approx((0, 0, 255), abs=LOSSY)


def test_animated_avif_is_refused(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), each) for each in ("red", "blue")]
    path = stored(frames[0], "AVIF", tmp_path, save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="has several frames; one is needed"):
        read_picture(path)


@pytest.mark.parametrize("kind", KINDS)
def test_picture_that_is_cut_anywhere_is_refused_or_whole(kind: str, tmp_path: Path) -> None:
    path = stored(smooth(), kind, tmp_path)
    content, whole = path.read_bytes(), read_picture(path).tobytes()
    refused = 0
    for length in {*range(40), *range(40, len(content), max(1, len(content) // 60))}:
        path.write_bytes(content[:length])
        read = read_or_refusal(path)
        if isinstance(read, str):
            refused += 1
            assert read.startswith(str(path))
        else:
            assert read.tobytes() == whole
    assert refused > 40


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_picture_has_the_sentence_of_other_formats(kind: str, tmp_path: Path) -> None:
    path = stored(smooth(), kind, tmp_path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=f"is damaged, or a kind of {kind} that is not read. Get"):
        read_picture(path)


def test_heic_that_is_larger_than_it_says_is_refused(tmp_path: Path) -> None:
    path = stored(smooth((400, 300)), "HEIF", tmp_path)
    content = path.read_bytes()
    place = content.index(b"ispe") + 8
    path.write_bytes(content[:place] + struct.pack(">II", 16, 16) + content[place + 8 :])
    with pytest.raises(UserError, match=r"Security limit exceeded.*[^ ]\. Get it anew$"):
        read_picture(path)


@pytest.mark.parametrize("kind", KINDS)
def test_random_damage_is_a_picture_or_a_user_error(kind: str, tmp_path: Path) -> None:
    path = stored(smooth(), kind, tmp_path)
    content, generator = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(content)
        for place in generator.integers(4, len(content), 3):
            damaged[place] = generator.integers(256)
        path.write_bytes(damaged)
        read = read_or_refusal(path)
        assert not isinstance(read, str) or read.startswith(str(path))


def test_without_pillow_heif_other_formats_are_read_and_heic_says_what_to_install(
    tmp_path: Path,
) -> None:
    heic = stored(smooth(), "HEIF", tmp_path)
    smooth().save(tmp_path / "picture.png")
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from pathlib import Path\n"
        "from pipeline.errors import UserError\n"
        "from pipeline.imaging.picture_files import read_picture\n"
        f"print(read_picture(Path({str(tmp_path / 'picture.png')!r})).size)\n"
        f"try: read_picture(Path({str(heic)!r}))\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "(48, 32)",
        f"{heic} is a HEIC picture, which the package pillow-heif reads. Install that with `pip "
        "install pillow-heif`, or save the picture as JPEG",
    ]
