"""Pictures are read upright, as 8-bit sRGB, or refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import save_picture
from PIL import Image, ImageCms

from pipeline.errors import Notice, UserError
from pipeline.imaging.picture_files import read_picture, read_with_alpha, write_png


def pixel(path: Path, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    return tuple(read_picture(path).getpixel(at))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    upright = Image.new("RGB", (4, 2), "black")
    upright.putpixel((3, 0), (255, 255, 255))
    undo = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for step in undo[orientation]:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(read_picture(tmp_path / "turned.png")), np.asarray(upright))


def test_icc_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    colour = Image.new("RGB", (8, 8), (200, 100, 50))
    colour.save(tmp_path / "plain.png")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    colour.save(tmp_path / "srgb.png", icc_profile=srgb.tobytes())
    assert pixel(tmp_path / "srgb.png") == pytest.approx(pixel(tmp_path / "plain.png"), abs=1)
    lab = ImageCms.createProfile("LAB", colorTemp=5000)
    in_lab = ImageCms.profileToProfile(colour, srgb, lab, outputMode="LAB")
    in_lab.save(tmp_path / "lab.tif", icc_profile=ImageCms.ImageCmsProfile(lab).tobytes())
    assert pixel(tmp_path / "lab.tif") == pytest.approx((200, 100, 50), abs=6)
    assert read_picture(tmp_path / "srgb.png").info == {}


def test_broken_icc_profile_is_ignored_with_a_warning(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (9, 8, 7)).save(tmp_path / "odd.png", icc_profile=b"no profile")
    with pytest.warns(Notice, match=r"odd\.png: its ICC profile is ignored"):
        assert pixel(tmp_path / "odd.png") == (9, 8, 7)


def test_transparency_is_composited_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "half.png")
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "grey.png")
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30])
    palette.save(tmp_path / "palette.png", transparency=0)
    assert pixel(tmp_path / "clear.png") == (255, 255, 255)
    assert pixel(tmp_path / "half.png") == pytest.approx((255, 127, 127), abs=1)
    assert pixel(tmp_path / "grey.png") == (255, 255, 255)
    assert pixel(tmp_path / "palette.png") == (255, 255, 255)


def test_stored_transparency_is_read_as_that_of_the_original(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (9, 7, 4)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "original.png")
    stored = read_with_alpha(tmp_path / "original.png")
    write_png(stored, tmp_path / "stored.png", {})
    assert np.array_equal(np.asarray(stored), values)
    assert np.array_equal(
        np.asarray(read_picture(tmp_path / "stored.png")),
        np.asarray(read_picture(tmp_path / "original.png")),
    )


def test_opaque_picture_has_no_alpha(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (9, 8, 7, 255)).save(tmp_path / "opaque.png")
    assert read_with_alpha(tmp_path / "opaque.png").mode == "RGB"


@pytest.mark.parametrize(
    ("mode", "name"),
    [("L", "a.png"), ("P", "a.png"), ("CMYK", "a.jpg"), ("1", "a.png"), ("L", "a.webp")],
)
def test_other_modes_become_rgb_of_the_same_picture(mode: str, name: str, tmp_path: Path) -> None:
    picture = read_picture(save_picture(tmp_path / name, mode=mode))
    assert (picture.mode, picture.size) == ("RGB", (48, 32))
    expected = np.asarray(Image.linear_gradient("L").resize((48, 32)), dtype=float)
    assert abs(np.asarray(picture).mean() - expected.mean()) < 6


def test_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    values = np.array([[0, 257 * 128, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert [pixel(tmp_path / "deep.png", (x, 0)) for x in range(3)] == [
        (0, 0, 0),
        (128, 128, 128),
        (255, 255, 255),
    ]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.png does not exist"):
        read_picture(tmp_path / "nothing.png")


def test_png_carries_its_text_and_has_stable_bytes(tmp_path: Path) -> None:
    picture = read_picture(save_picture(tmp_path / "in.png"))
    for name in ("a.png", "b.png"):
        write_png(picture, tmp_path / name, {"Settings": '{"naïve": "α"}'})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as written:
        assert written.text == {"Settings": '{"naïve": "α"}'}
    assert {path.name for path in tmp_path.iterdir()} == {"in.png", "a.png", "b.png"}
