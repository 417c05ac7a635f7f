"""Reads picture files as upright 8-bit sRGB, and writes PNG.

The sizes in this module are Pillow's, (width, height); everywhere else they are (H, W).
"""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError

from pipeline.errors import UserError
from pipeline.files import replacing

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP")
"""Formats that are read, by Pillow's names. Some others are unsafe: EPS runs another program."""

_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_MODES_OF_ICC_PROFILES = ("L", "RGB", "CMYK", "YCbCr", "LAB")


def read_picture(path: Path) -> Image.Image:
    """Returns the picture in a file, as mode RGB.

    EXIF orientation is applied, an embedded ICC profile is converted to sRGB (a broken one is
    ignored with a warning), alpha is composited on white, 16 bits are reduced to 8.

    Raises:
        UserError: not a picture of ``FORMATS``, truncated, animated, floating point, or larger
            than ``PIL.Image.MAX_IMAGE_PIXELS``, 89 million (a decompression bomb).
    """
    try:
        picture = _to_srgb(_read_upright(path), path)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise UserError(
            f"{path} is too large: at most {limit} million pixels are read. Reduce it first"
        ) from error
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except UnidentifiedImageError as error:
        with path.open("rb") as file:
            start = file.read(24)
        content = f"it starts with {start!r}" if start else "it is empty"
        raise UserError(
            f"{path} is not a picture: {content}. "
            f"Give a file in one of the formats {', '.join(FORMATS)}"
        ) from error
    except UserError:
        raise
    except Exception as error:  # Pillow's parsers raise anything when the bytes are malicious
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{path} cannot be read as a picture, or is cut short: {reason}. Get it anew"
        ) from error
    picture.info.clear()  # Pillow would save the profile again, and the date
    return picture


def _read_upright(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow warns of harmless damage too, such as broken EXIF.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # Image.open(path) would not close a file that it cannot read.
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as picture:
            # MPO is a JPEG photograph with further views. n_frames would read the whole file.
            if getattr(picture, "is_animated", False) and picture.format != "MPO":
                raise UserError(f"{path} has several frames; one is needed. Save the one you want")
            picture.load()
            return ImageOps.exif_transpose(picture)


def _to_srgb(picture: Image.Image, path: Path) -> Image.Image:
    if picture.mode in _SIXTEEN_BIT_MODES:
        return _reduced_to_eight_bits(picture).convert("RGB")
    if picture.mode == "F":
        raise UserError(f"{path} has floating point pixels. Save it with 8 or 16 bits")
    if picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    profile = picture.info.get("icc_profile")
    if picture.mode not in _MODES_OF_ICC_PROFILES:
        picture = picture.convert("L" if picture.mode in ("LA", "La", "1") else "RGB")
    if profile:
        picture = _converted_to_srgb(picture, profile, path)
    picture = picture.convert("RGB")
    if alpha is None:
        return picture
    return Image.composite(picture, Image.new("RGB", picture.size, "white"), alpha)


def _converted_to_srgb(picture: Image.Image, profile: bytes, path: Path) -> Image.Image:
    try:
        source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(picture, source, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        warnings.warn(f"{path}: its ICC profile is ignored ({error})", stacklevel=2)
        return picture
    return converted if converted is not None else picture


def _reduced_to_eight_bits(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture).clip(0, 65535).astype(np.uint32)
    values *= 255  # in place, because a picture may have 89 million values
    values += 32767
    values //= 65535
    return Image.fromarray(values.astype(np.uint8))


def write_png(picture: Image.Image, path: Path, text: Mapping[str, str]) -> None:
    """Writes a PNG with ``text`` as text chunks, atomically; equal input gives equal bytes."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in text.items():
        chunks.add_itxt(key, value)
    with replacing(path) as temporary:
        # A higher level takes twice as long and makes files of such pictures no smaller.
        picture.save(temporary, format="PNG", pnginfo=chunks, compress_level=1)


def read_text(path: Path) -> dict[str, str]:
    """Returns the text chunks of a PNG."""
    with Image.open(path) as picture:
        assert isinstance(picture, PngImagePlugin.PngImageFile)
        return {key: str(value) for key, value in picture.text.items()}
