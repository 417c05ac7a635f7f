"""Damage beside the pixels is ignored with one notice, and missing pixels are refused."""

from __future__ import annotations

import random
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import encoded
from numpy.typing import NDArray
from picture_encoders import chunk, iccp, png, wide_gamut_profile
from PIL import Image

from pipeline.errors import Notice, UserError
from pipeline.imaging.picture_files import read_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3))
PICTURE = Image.fromarray(PIXELS.astype(np.uint8))

KINDS: dict[str, dict[str, Any]] = {
    "JPEG": {},
    "JPEG progressive": {"progressive": True},
    "JPEG with restarts": {"restart_marker_blocks": 2},
    "JPEG with optimised tables": {"optimize": True},
    "JPEG of one size": {"subsampling": 0},
}


def read(content: bytes, folder: Path) -> tuple[NDArray[Any], list[str]]:
    """Returns the pixels of a picture, and the notices, without its path."""
    (folder / "picture").write_bytes(content)
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        pixels = np.asarray(read_picture(folder / "picture"))
    assert all(notice.category is Notice for notice in notices)
    prefix = f"{folder / 'picture'}: "
    return pixels, [str(notice.message).removeprefix(prefix) for notice in notices]


def jpeg(name: str, picture: Image.Image = PICTURE) -> bytes:
    return encoded(picture, "JPEG", **KINDS[name])


@pytest.mark.parametrize("missing", [1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("name", KINDS)
def test_jpeg_without_its_end_marker_has_all_its_pixels(
    name: str, mode: str, missing: int, tmp_path: Path
) -> None:
    content = jpeg(name, PICTURE.convert(mode))
    whole, notices = read(content, tmp_path)
    assert notices == []
    pixels, notices = read(content[:-missing], tmp_path)
    assert np.array_equal(pixels, whole)
    assert notices == ["its end marker is missing"]


@pytest.mark.parametrize("end", [b"", b"\xff\xd9"], ids=["open", "closed"])
@pytest.mark.parametrize("name", KINDS)
def test_jpeg_that_lacks_pixels_is_refused(name: str, end: bytes, tmp_path: Path) -> None:
    content = jpeg(name)
    whole, _ = read(content, tmp_path)
    for length in range(2, len(content) - 3, 97 if end else 31):
        try:
            pixels, _ = read(content[:length] + end, tmp_path)
        except UserError:
            continue
        # A progressive file may end after any scan, if its end marker says that it does.
        assert name == "JPEG progressive"
        assert end
        assert np.abs(pixels.astype(int) - whole).mean() < 20


def test_scans_of_a_progressive_jpeg_are_missed(tmp_path: Path) -> None:
    content = jpeg("JPEG progressive")
    starts = [at for at in range(len(content)) if content[at : at + 2] == b"\xff\xda"]
    tables = [at for at in range(len(content)) if content[at : at + 2] == b"\xff\xc4"]
    assert len(starts) > 3
    for start in starts[1:]:
        end = max([at for at in tables if at < start and at > starts[0]], default=start)
        with pytest.raises(UserError, match="are missing at its end"):
            read(content[:end], tmp_path)


def test_further_views_behind_a_jpeg_are_no_damage(tmp_path: Path) -> None:
    content = encoded(PICTURE, "MPO", save_all=True, append_images=[PICTURE])
    assert read(content, tmp_path)[1] == []
    content = jpeg("JPEG")
    assert read(content + b"trailing", tmp_path)[1] == ["8 bytes after its end are ignored"]


def test_broken_exif_is_ignored_in_every_format(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", 1
    whole = exif.tobytes()
    generator = random.Random(0)
    blocks = [
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        whole[: len(whole) // 2],
        whole[:12],
        *(generator.randbytes(generator.randrange(40)) for _ in range(8)),
        *(b"Exif\0\0II*\0\x08\0\0\0" + generator.randbytes(30) for _ in range(8)),
    ]
    for kind in ("PNG", "WEBP", "JPEG"):
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"quality": 95}
        expected, _ = read(encoded(PICTURE, kind, **options), tmp_path)
        for block in blocks:
            pixels, notices = read(encoded(PICTURE, kind, exif=block, **options), tmp_path)
            assert len(notices) <= 1
            assert all("its EXIF data is " in each or "orientation" in each for each in notices)
            assert np.array_equal(pixels, expected)
    _, notices = read(encoded(PICTURE, "PNG", exif=b"none"), tmp_path)
    assert notices[0].startswith("its EXIF data is ignored (")


@pytest.mark.parametrize("orientation", [0, 9, 99, 65535])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_orientation_that_is_none_is_ignored(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels, notices = read(encoded(PICTURE, kind, exif=exif), tmp_path)
    assert pixels.shape == PIXELS.shape
    assert notices == [f"its orientation {orientation} is ignored, because it is none of 1 to 8"]


def test_broken_xmp_is_no_harm(tmp_path: Path) -> None:
    for text in (b"<x:xmpmeta", b'tiff:Orientation="x"', b"\xff\xfe\0", b""):
        xmp = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text)
        assert np.array_equal(read(png(PIXELS, before=xmp), tmp_path)[0], PIXELS)
        assert read(encoded(PICTURE, "JPEG", xmp=text), tmp_path)[1] == []
    xmp = chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0 tiff:Orientation="6"')
    assert read(png(PIXELS, before=xmp), tmp_path)[0].shape == (40, 24, 3)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize(
    "kind", [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"gAMA", b"pHYs", b"eXIf", b"cHRM", b"sRGB"]
)
def test_png_with_damaged_chunk_has_its_pixels(kind: bytes, where: str, tmp_path: Path) -> None:
    for damaged in (chunk(kind, b"x\0\0something", checksum=1), chunk(kind), chunk(kind, b"\xff")):
        pixels, notices = read(png(PIXELS, **{where: damaged}), tmp_path)  # type: ignore[arg-type]
        assert np.array_equal(pixels, PIXELS)
        assert len(notices) <= 1
    wrong_sum = chunk(kind, b"x\0\0something", checksum=1)
    _, notices = read(png(PIXELS, **{where: wrong_sum}), tmp_path)  # type: ignore[arg-type]
    assert notices == [f"its damaged chunk {kind.decode()} is ignored"]


def test_png_with_damaged_transparency_is_refused(tmp_path: Path) -> None:
    for damaged in (chunk(b"tRNS", bytes(6), checksum=1), chunk(b"tRNS", b"")):
        with pytest.raises(UserError, match=r"is damaged|is cut short"):
            read(png(PIXELS, before=damaged), tmp_path)


def test_large_chunks_of_a_png_are_read(tmp_path: Path) -> None:
    mebibytes = zlib.compress(bytes(2 * 2**20))
    for large in (
        chunk(b"zTXt", b"x\0\0" + mebibytes),
        chunk(b"iTXt", b"x\0\1\0\0\0" + mebibytes),
        chunk(b"tEXt", b"x\0" + b"a" * 2 * 2**20),
        chunk(b"zTXt", b"x\0\0" + mebibytes) * 40,
    ):
        for where in ("before", "after"):
            pixels, notices = read(png(PIXELS, **{where: large}), tmp_path)  # type: ignore[arg-type]
            assert np.array_equal(pixels, PIXELS)
            assert notices == []


def test_profile_of_two_mebibytes_is_applied_and_a_bomb_ignored(tmp_path: Path) -> None:
    profile = wide_gamut_profile()
    small, _ = read(png(PIXELS, before=iccp(profile)), tmp_path)
    padded = profile + bytes(2 * 2**20)
    large, notices = read(png(PIXELS, before=iccp(padded)), tmp_path)
    assert np.array_equal(large, small)
    assert not np.array_equal(large, PIXELS)
    assert notices == []
    pixels, notices = read(png(PIXELS, before=iccp(bytes(17 * 2**20))), tmp_path)
    assert np.array_equal(pixels, PIXELS)
    assert notices[0].startswith("its chunk iCCP is ignored (Decompressed data too large")
    pixels, notices = read(png(PIXELS, before=chunk(b"iCCP", b"x\0\0no zlib")), tmp_path)
    assert notices == ["its chunk iCCP is ignored (it is damaged)"]


def test_end_of_a_png_may_be_missing_or_followed(tmp_path: Path) -> None:
    for end, expected in {
        b"": ["its end marker is missing"],
        chunk(b"IEND")[:7]: ["its end marker is missing"],
        chunk(b"IEND") + b"more": ["4 bytes after its end are ignored"],
        bytes(100): ["its end marker is missing"],
    }.items():
        pixels, notices = read(png(PIXELS, end=end), tmp_path)
        assert np.array_equal(pixels, PIXELS)
        assert notices == expected
    text = chunk(b"tEXt", b"a\0" + bytes(50))
    pixels, notices = read(png(PIXELS, after=text[:-30], end=b""), tmp_path)
    assert np.array_equal(pixels, PIXELS)
    assert notices == ["its damaged chunk tEXt is ignored; its end marker is missing"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("TIFF", {"compression": "packbits"}),
    ],
)
def test_picture_that_is_cut_anywhere_is_refused_or_whole(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    content = encoded(PICTURE, kind, **options)
    whole, _ = read(content, tmp_path)
    refused = 0
    for missing in [*range(1, 30), *range(30, len(content), len(content) // 30)]:
        try:
            pixels, _ = read(content[:-missing], tmp_path)
        except UserError:
            refused += 1
        else:
            assert np.array_equal(pixels, whole)
    assert refused > 30
