"""Every depth, sign, colour space, profile and transparency comes out like its 8-bit twin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from picture_encoders import (
    chunk,
    cmyk_profile,
    grey_profile,
    iccp,
    png,
    tiff,
    wide_gamut_profile,
)
from PIL import Image, ImageCms

from pipeline.errors import UserError
from pipeline.imaging.picture_files import read_picture, read_with_alpha

GREY, WHITE_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 1, 0, 2, 3, 5, 6, 8
"""Values of TIFF's tag PhotometricInterpretation."""

Pixels = NDArray[np.float64]


@pytest.fixture
def samples() -> NDArray[Any]:
    """8-bit samples of (H, W, 5), of which the first two pixels are black and white."""
    drawn = np.random.default_rng(0).integers(0, 256, (6, 7, 5))
    drawn[0, 0], drawn[0, 1] = 0, 255
    drawn[1, 1] = drawn[1, 2]
    return drawn


def read(content: bytes, folder: Path) -> Pixels:
    (folder / "picture").write_bytes(content)
    return np.asarray(read_picture(folder / "picture"), np.float64)


def read_or_refusal(content: bytes, folder: Path) -> Pixels | str:
    try:
        return read(content, folder)
    except UserError as error:
        return str(error)


def on_white(colours: NDArray[Any], alpha: NDArray[Any]) -> Pixels:
    return np.broadcast_to((colours * alpha + 255.0 * (255 - alpha)) / 255, (6, 7, 3))


def difference(one: Pixels, other: NDArray[Any]) -> float:
    return float(np.abs(one - other).max())


def srgb(linear: NDArray[Any]) -> Pixels:
    """Returns sRGB of 0 to 255 from light of 0 to 1."""
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [GREY, WHITE_IS_ZERO])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10, 12, 14, 16, 32])
def test_grey_tiff_of_every_depth_is_like_eight_bits_or_refused(
    bits: int,
    photometric: int,
    order: str,
    compressed: bool,
    samples: NDArray[Any],
    tmp_path: Path,
) -> None:
    top = 2**bits - 1
    stored = samples[..., :1] * top // 255
    content = tiff(stored, bits, photometric, order=order, compressed=compressed)
    expected = stored / top * 255
    outcome = read_or_refusal(content, tmp_path)
    if isinstance(outcome, str):  # Pillow does not open it
        assert bits in (10, 14) or (bits > 8 and (photometric == WHITE_IS_ZERO or order == ">"))
        assert "a kind of TIFF that is not read. Get it anew, or save it as PNG" in outcome
    else:
        white = photometric == WHITE_IS_ZERO
        assert difference(outcome, 255 - expected if white else expected) <= 1


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_signed_pixels_are_refused_by_name(
    bits: int, samples: NDArray[Any], tmp_path: Path
) -> None:
    content = tiff(samples[..., :1], bits, sample_format=2)
    with pytest.raises(UserError, match=r"has signed pixels\. Save it with unsigned"):
        read(content, tmp_path)


COLOURS: dict[str, tuple[int, int, list[int]]] = {
    "RGB": (RGB, 3, []),
    "RGB with alpha": (RGB, 4, [2]),
    "RGB with premultiplied alpha": (RGB, 4, [1]),
    "RGB with something else": (RGB, 4, [0]),
    "CMYK": (CMYK, 4, []),
    "grey with alpha": (GREY, 2, [2]),
    "grey with premultiplied alpha": (GREY, 2, [1]),
}


def colours_of(name: str, samples: NDArray[Any]) -> tuple[NDArray[Any], Pixels]:
    """Returns what a TIFF of this kind stores, and the picture it shows."""
    _, channels, _ = COLOURS[name]
    stored = samples[..., :channels].copy()
    colours, last = stored[..., :-1], stored[..., -1:]
    if name == "CMYK":
        return stored, (255.0 - colours) * (255 - last) / 255
    if name in ("RGB", "RGB with something else"):
        return stored, stored[..., :3].astype(np.float64)
    shown = on_white(colours, last)
    if "premultiplied" in name:
        stored[..., :-1] = np.rint(colours * last / 255)
    return stored, shown


@pytest.mark.parametrize("planes", [False, True], ids=["interleaved", "planes"])
@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "compressed"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", COLOURS)
def test_colours_of_a_tiff_are_right_or_refused(
    name: str, bits: int, compressed: bool, planes: bool, samples: NDArray[Any], tmp_path: Path
) -> None:
    stored, expected = colours_of(name, samples)
    photometric, _, extra = COLOURS[name]
    content = tiff(
        stored * (257 if bits == 16 else 1),
        bits,
        photometric,
        extra=extra,
        compressed=compressed,
        planes=planes,
    )
    outcome = read_or_refusal(content, tmp_path)
    if isinstance(outcome, str):
        assert planes or (bits == 16 and name.startswith("grey"))
        assert "a kind of TIFF that is not read" in outcome or "separate planes" in outcome
    else:
        assert difference(outcome, expected) <= 2


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_and_ycbcr_and_lab_of_a_tiff(
    bits: int, samples: NDArray[Any], tmp_path: Path
) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (3, 2**bits))
    index = samples[..., :1] % 2**bits
    palette = [(320, (257 * colours).ravel().tolist())]
    pixels = read(tiff(index, bits, PALETTE, tags=palette), tmp_path)
    assert difference(pixels, colours.T[index[..., 0]]) <= 1
    twin = Image.fromarray(samples[..., :3].astype(np.uint8))
    converted = np.asarray(twin.convert("YCbCr")).astype(int)
    pixels = read(tiff(converted, 8, YCBCR, tags=[(530, [1, 1])]), tmp_path)
    assert difference(pixels, np.asarray(twin)) <= 3
    with pytest.raises(UserError, match="has colours of a lower resolution"):
        read(tiff(converted, 8, YCBCR, tags=[(530, [2, 2])]), tmp_path)
    neutral = np.full((6, 7, 3), [136, 0, 0])  # L* of 53.3 is the grey 127
    assert difference(read(tiff(neutral, 8, LAB), tmp_path), np.full(3, 127)) <= 1


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_png_has_its_one_transparent_colour(
    bits: int, samples: NDArray[Any], tmp_path: Path
) -> None:
    top = 2**bits - 1
    stored = samples[..., :1] * top // 255
    shown = stored / top * 255
    for level in {0, top, int(stored[1, 1, 0])}:
        key = chunk(b"tRNS", level.to_bytes(2, "big"))
        pixels = read(png(stored, bits, 0, before=key), tmp_path)
        assert difference(pixels, np.where(stored == level, 255, shown)) <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_colours_of_a_png_have_their_transparency(
    bits: int, samples: NDArray[Any], tmp_path: Path
) -> None:
    scale = 257 if bits == 16 else 1
    colours, alpha = samples[..., :3], samples[..., 3:4]
    key = chunk(b"tRNS", (scale * samples[1, 1, :3]).astype(">u2").tobytes())
    clear = (colours == colours[1, 1]).all(axis=-1, keepdims=True)
    pixels = read(png(scale * colours, bits, 2, before=key), tmp_path)
    assert difference(pixels, np.where(clear, 255, colours)) <= 1
    pixels = read(png(scale * samples[..., :4], bits, 6), tmp_path)
    assert difference(pixels, on_white(colours, alpha)) <= 1
    pixels = read(png(scale * samples[..., [0, 3]], bits, 4), tmp_path)
    assert difference(pixels, on_white(colours[..., :1], alpha)) <= 1


DEPTHS = {
    "PNG": (1, 2, 4, 8, 16),
    "TIFF": (1, 2, 4, 8, 12, 16, 32),
    "white is zero": (1, 2, 4, 8, 16),
    "palette": (1, 2, 4, 8),
    "with alpha": (8, 16),
}


@pytest.mark.parametrize(("kind", "bits"), [(kind, n) for kind in DEPTHS for n in DEPTHS[kind]])
def test_linear_grey_profile_is_applied_at_every_depth(
    kind: str, bits: int, samples: NDArray[Any], tmp_path: Path
) -> None:
    top = 2**bits - 1
    stored, profile = samples[..., :1] * top // 255, grey_profile(1)
    light = stored / top
    if kind == "TIFF":
        content = tiff(stored, bits, profile=profile)
    elif kind == "white is zero":
        content, light = tiff(stored, bits, WHITE_IS_ZERO, profile=profile), 1 - light
    elif kind == "PNG":
        content = png(stored, bits, 0, before=iccp(profile))
    elif kind == "palette":
        greys = bytes(level * 255 // top for level in range(top + 1) for _ in range(3))
        content = png(stored, bits, 3, before=iccp(profile) + chunk(b"PLTE", greys))
    else:
        alpha = np.full_like(stored, top)
        content = png(np.concatenate([stored, alpha], -1), bits, 4, before=iccp(profile))
    assert difference(read(content, tmp_path), srgb(light)) <= 1


@pytest.mark.parametrize("deep", [False, True], ids=["8 bits", "16 bits"])
def test_profiles_of_colours_are_applied(deep: bool, samples: NDArray[Any], tmp_path: Path) -> None:
    bits, scale = (16, 257) if deep else (8, 1)
    wide, printer = wide_gamut_profile(), cmyk_profile()

    def expected(picture: Image.Image, profile: bytes) -> NDArray[Any]:
        (tmp_path / "profile.icc").write_bytes(profile)
        source = ImageCms.getOpenProfile(str(tmp_path / "profile.icc"))
        target = ImageCms.createProfile("sRGB")
        return np.asarray(
            ImageCms.profileToProfile(picture, source, target, outputMode="RGB"), np.float64
        )

    eight = samples.astype(np.uint8)
    rgb = expected(Image.fromarray(eight[..., :3]), wide)
    assert difference(rgb, eight[..., :3]) > 50, "the profile matters"
    grey = expected(Image.fromarray(eight[..., 0]).convert("RGB"), wide)
    inks = expected(Image.frombytes("CMYK", (7, 6), eight[..., :4].tobytes()), printer)
    files = {
        "RGB": (png(scale * samples[..., :3], bits, 2, before=iccp(wide)), rgb),
        "TIFF": (tiff(scale * samples[..., :3], bits, RGB, profile=wide), rgb),
        "grey": (png(scale * samples[..., :1], bits, 0, before=iccp(wide)), grey),
        "RGBA": (
            png(scale * samples[..., :4], bits, 6, before=iccp(wide)),
            on_white(rgb, samples[..., 3:4]),
        ),
        "CMYK": (tiff(scale * samples[..., :4], bits, CMYK, profile=printer), inks),
    }
    for name, (content, pixels) in files.items():
        assert difference(read(content, tmp_path), pixels) <= 1, name


def test_ycbcr_tiff_has_the_profile_of_its_rgb(samples: NDArray[Any], tmp_path: Path) -> None:
    twin = Image.fromarray(samples[..., :3].astype(np.uint8)).convert("YCbCr")
    back = np.asarray(twin.convert("RGB")).astype(int)
    stored = np.asarray(twin).astype(int)
    wide = wide_gamut_profile()
    converted = read(tiff(stored, 8, YCBCR, profile=wide, tags=[(530, [1, 1])]), tmp_path)
    assert difference(converted, read(png(back, before=iccp(wide)), tmp_path)) == 0


def test_sixteen_bit_mean_of_the_report_is_right(tmp_path: Path) -> None:
    """Seen before: 7.4 for 12 bits, and 52.0 with a linear profile, where 119.5 is right."""
    ramp = np.linspace(0, 1, 256).reshape(16, 16, 1)
    twelve = np.rint(4095 * ramp).astype(int)
    assert read(tiff(twelve, 12), tmp_path).mean() == pytest.approx(127.5, abs=0.5)
    linear = np.rint(65535 * ramp**2.2).astype(int)
    content = png(linear, 16, 0, before=iccp(grey_profile(1)))
    assert read(content, tmp_path).mean() == pytest.approx(127.5, abs=1)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "compressed TIFF"])
def test_sixteen_bits_of_a_colour_are_rounded(kind: str, channels: int, tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 40 * 60 * 3).astype(int).reshape(40, 60, 3)
    stored = np.concatenate([ramp, ramp[..., :1] // 2], -1)[..., :channels]
    if kind == "PNG":
        content = png(stored, 16, 2 if channels == 3 else 6)
    else:
        extra = [2] if channels == 4 else []
        content = tiff(stored, 16, RGB, extra=extra, compressed=kind != "TIFF")
    (tmp_path / "picture").write_bytes(content)
    pixels = np.asarray(read_with_alpha(tmp_path / "picture"), np.float64)
    assert np.abs(pixels - stored / 257).max() <= 0.5
