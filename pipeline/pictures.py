"""Picture files: any that Pillow reads in, as upright 8-bit sRGB; PNG out.

The sizes in this module are Pillow's, (width, height); everywhere else they are (H, W).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError

from pipeline.errors import UserError
from pipeline.files import replacing

_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_MULTI_PICTURE_PHOTOGRAPH = "MPO"


def read_picture(path: Path) -> Image.Image:
    """Returns the picture in a file: mode RGB, upright, in sRGB, transparency on white.

    EXIF orientation is applied, an embedded ICC profile is converted to sRGB (a broken one is
    ignored with a warning), alpha is composited on white, 16 bits are reduced to 8; greyscale,
    palette and CMYK pictures are accepted.

    Raises:
        UserError: not a picture, truncated, animated, floating point, or larger than
            ``PIL.Image.MAX_IMAGE_PIXELS`` (a decompression bomb).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                _refuse_animation(path, picture)
                picture.load()
                upright = _to_srgb(ImageOps.exif_transpose(picture), path)
                upright.info.clear()  # or Pillow would save the profile again, and its date
                return upright
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise UserError(
            f"{path} is too large: at most {limit} million pixels are read. Reduce it first"
        ) from error
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{path} is not a picture: it starts with {_first_bytes(path)!r}. "
            "JPEG, PNG, TIFF, WebP, GIF and BMP are read"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a picture, or is cut short: {error}") from error


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(24)


def _refuse_animation(path: Path, picture: Image.Image) -> None:
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != _MULTI_PICTURE_PHOTOGRAPH:
        raise UserError(f"{path} has {frames} frames; one is needed. Save the one you want")


def _to_srgb(picture: Image.Image, path: Path) -> Image.Image:
    if picture.mode in _SIXTEEN_BIT_MODES:
        return _reduced_to_eight_bits(picture).convert("RGB")
    if picture.mode == "F":
        raise UserError(f"{path} has floating point pixels. Save it with 8 or 16 bits")
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    profile = picture.info.get("icc_profile")
    colours = _without_alpha(picture)
    if profile:
        colours = _converted_to_srgb(colours, profile, path)
    colours = colours.convert("RGB")
    if alpha is not None:
        white = Image.new("RGB", colours.size, "white")
        colours = Image.composite(colours, white, alpha)
    return colours


def _without_alpha(picture: Image.Image) -> Image.Image:
    if picture.mode in ("L", "RGB", "CMYK", "YCbCr", "LAB"):
        return picture
    return picture.convert("L" if picture.mode in ("LA", "La", "1") else "RGB")


def _converted_to_srgb(picture: Image.Image, profile: bytes, path: Path) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(picture, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        warnings.warn(f"{path}: its ICC profile is ignored ({error})", stacklevel=2)
        return picture
    return converted if converted is not None else picture


def _reduced_to_eight_bits(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture).astype(np.int64).clip(0, 65535)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def write_png(picture: Image.Image, path: Path, text: Mapping[str, str]) -> None:
    """Writes a PNG with ``text`` as its text chunks, atomically; the same input, the same bytes."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in text.items():
        chunks.add_itxt(key, value)
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=chunks)
