"""Results are written with their depth, profile, resolution, transparency and settings."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms
from torch import Tensor

from pipeline.errors import UserError
from pipeline.imaging.output import result_files
from pipeline.imaging.output.result_files import FORMATS, check_output, write_result
from pipeline.imaging.output.srgb_profile import SRGB_PROFILE
from pipeline.imaging.picture_files import read_picture, read_text, read_with_alpha, write_png
from pipeline.imaging.tensors import as_saved, to_tensor

TEXT = {"Software": "style-transfer-pipeline 1", "Settings": '{"naïve": "α"}'}


@pytest.fixture
def image() -> Tensor:
    """An image that is higher than what is compressed at a time, with values outside of [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand((1, 3, 300, 21), generator=generator) * 1.2 - 0.1


@pytest.fixture
def alpha() -> Tensor:
    return torch.linspace(0, 1, 300).view(1, 1, 300, 1).expand(1, 1, 300, 21)


def levels(image: Tensor, bits: int) -> NDArray[Any]:
    return np.rint(image.clamp(0, 1).numpy()[0].transpose(1, 2, 0) * np.float32(2**bits - 1))


def sixteen_bits_of_png(path: Path) -> NDArray[np.uint16]:
    """Returns the samples of a PNG of 16 bits whose rows are all differences from the left."""
    content, position, data = path.read_bytes(), 8, b""
    while position < len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        chunk = content[position + 8 : position + 8 + length]
        assert (
            zlib.crc32(kind + chunk) == struct.unpack_from(">I", content, position + 8 + length)[0]
        )
        if kind == b"IHDR":
            width, height, bits, colour, *_ = struct.unpack(">IIBBBBB", chunk)
        data += chunk if kind == b"IDAT" else b""
        position += 12 + length
    channels = {2: 3, 6: 4}[colour]
    assert bits == 16
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, -1)
    assert (rows[:, 0] == 1).all()
    pixels = rows[:, 1:].reshape(height, width, 2 * channels)
    return np.cumsum(pixels, axis=1, dtype=np.uint8).view(">u2").astype(np.uint16)


def test_sixteen_bit_png_has_every_level(image: Tensor, alpha: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_result(image, path, bits=16, text=TEXT)
    assert np.array_equal(sixteen_bits_of_png(path), levels(image, 16))
    write_result(image, path, bits=16, alpha=alpha, text=TEXT)
    assert np.array_equal(sixteen_bits_of_png(path), levels(torch.cat([image, alpha], 1), 16))


@pytest.mark.parametrize("name", ["a.tif", "a.TIFF"])
@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_has_every_level(
    bits: int, name: str, image: Tensor, alpha: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / name
    write_result(image, path, bits=bits, text=TEXT)
    assert np.array_equal(tifffile.imread(path), levels(image, bits))
    write_result(image, path, bits=bits, alpha=alpha, text=TEXT)
    assert np.array_equal(tifffile.imread(path), levels(torch.cat([image, alpha], 1), bits))


@pytest.mark.parametrize("suffix", FORMATS)
def test_written_result_is_read_again(suffix: str, image: Tensor, tmp_path: Path) -> None:
    smooth = torch.nn.functional.interpolate(image, (64, 48), mode="bilinear", antialias=True)
    smooth = smooth.mean(2, keepdim=True).expand(1, 3, 64, 48)
    path = tmp_path / f"a{suffix}"
    write_result(smooth, path, text=TEXT)
    error = (to_tensor(read_picture(path)) - as_saved(smooth, 8)).abs().max()
    assert error <= (0.03 if suffix in (".jpg", ".jpeg", ".webp") else 0)


@pytest.mark.parametrize(("name", "bits"), [("a.png", 8), ("a.png", 16), ("a.tif", 16)])
def test_transparent_result_is_read_again(
    name: str, bits: int, image: Tensor, alpha: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / name
    write_result(image, path, bits=bits, alpha=alpha, text=TEXT)
    read = to_tensor(read_with_alpha(path))
    # Pillow takes the upper byte of 16 bits.
    assert (read - as_saved(torch.cat([image, alpha], 1), 8)).abs().max() <= 1.001 / 255
    assert read_picture(path).mode == "RGB"


@pytest.mark.parametrize("suffix", FORMATS)
def test_result_names_profile_resolution_and_settings(
    suffix: str, image: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    for bits in {8, FORMATS[suffix].bits}:
        write_result(image, path, bits=bits, dpi=300, text=TEXT)
        with Image.open(path) as picture:
            assert picture.info["icc_profile"] == SRGB_PROFILE
            exif = picture.getexif()
            dpi = picture.info.get("dpi") or (exif[0x011A], exif[0x011B])
            assert [float(each) for each in dpi] == pytest.approx([300, 300], abs=0.01)
            if suffix == ".png":
                assert read_text(path) == TEXT
            else:
                assert json.loads(exif[0x010E]) == TEXT
                assert exif[0x0131] == TEXT["Software"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_equal_results_have_equal_bytes(suffix: str, image: Tensor, tmp_path: Path) -> None:
    for bits in {8, FORMATS[suffix].bits}:
        for name in ("a", "b"):
            write_result(image, tmp_path / f"{name}{suffix}", bits=bits, dpi=72, text=TEXT)
        assert len({(tmp_path / f"{name}{suffix}").read_bytes() for name in "ab"}) == 1
    assert {path.name for path in tmp_path.iterdir()} == {f"a{suffix}", f"b{suffix}"}


def test_profile_is_srgb_and_leaves_pixels_unchanged(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(io.BytesIO(SRGB_PROFILE))
    assert ImageCms.getProfileDescription(profile).strip() == "sRGB"
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    picture = Image.fromarray(values)
    converted = ImageCms.profileToProfile(picture, profile, ImageCms.createProfile("sRGB"))
    assert np.abs(np.asarray(converted).astype(int) - values).max() <= 1
    write_png(picture, tmp_path / "a.png", {}, SRGB_PROFILE)
    assert np.array_equal(np.asarray(read_picture(tmp_path / "a.png")), values)


def test_long_settings_fit_into_every_format(tmp_path: Path) -> None:
    for suffix in FORMATS:
        path = tmp_path / f"a{suffix}"
        write_result(torch.rand(1, 3, 8, 9), path, text={"Settings": "x" * 100_000})
        assert read_picture(path).size == (9, 8)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "a.bmp",
            {},
            "a.bmp ends in '.bmp'. Pictures are written as .png, .tif, .tiff, .jpg, .jpeg or "
            ".webp: use one",
        ),
        ("a", {}, "a ends in no suffix. Pictures are written as .png"),
        (
            "a.jpg",
            {"bits": 16},
            "a.jpg: JPEG holds 8 bits of a colour, not 16. Ask for 8 bits, or end the name in "
            ".png or .tif or .tiff",
        ),
        ("a.webp", {"bits": 16}, "a.webp: WebP holds 8 bits of a colour, not 16"),
        (
            "a.jpeg",
            {"alpha": True},
            "a.jpeg: JPEG holds no transparency. Turn alpha off, or end the name in .png or .tif "
            "or .tiff or .webp",
        ),
        (
            "a.webp",
            {"size": (20, 16384)},
            "a.webp: WebP holds edges of at most 16383 pixels, not 16384. Reduce the size",
        ),
        ("none/a.png", {}, "none/a.png: there is no folder none. Make it, or name another"),
        ("a.txt/a.png", {}, "a.txt/a.png: there is no folder a.txt. Make it"),
        ("a" * 300 + ".png", {}, ".: the name of the file in it has more than 200 bytes. Shorten"),
        ("folder.png", {}, "folder.png is a folder. Add the name of a file"),
    ],
)
def test_output_that_cannot_be_written_is_refused_before_anything_is_computed(
    name: str,
    options: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    Path("a.txt").touch()
    with pytest.raises(UserError) as refusal:
        check_output(Path(name), **options)
    assert str(refusal.value).startswith(message)


def test_folder_that_may_not_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_files.os, "access", lambda *_: False)  # for tests run by root
    with pytest.raises(UserError, match="you may not write into the folder"):
        check_output(tmp_path / "a.png")


def test_possible_output_passes(tmp_path: Path) -> None:
    for suffix, form in FORMATS.items():
        check_output(tmp_path / f"a{suffix.upper()}", form.bits, form.alpha, (30, 40))


def test_failed_writing_leaves_the_old_file(tmp_path: Path, image: Tensor) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"old")
    with pytest.raises(UserError):
        write_result(image, path, bits=16, text=TEXT)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
