"""Reads picture files as upright 8-bit sRGB, and writes PNG.

The sizes in this module are Pillow's, (width, height); everywhere else they are (H, W).
"""

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from pipeline.errors import Notice, UserError
from pipeline.files import replacing
from pipeline.imaging.pixel_formats import check_pixels, on_white, rounded, to_srgb
from pipeline.imaging.repairs import repaired

try:
    import pillow_heif
except ImportError:  # the other formats are read without it
    pass
else:
    pillow_heif.register_heif_opener()

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "HEIF", "AVIF")
"""Formats that are read, by Pillow's names. Some others are unsafe: EPS runs another program."""
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""What follows ``ftyp`` at the start of a HEIF file: HEIC is HEIF with pixels in HEVC."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""{orientation in the EXIF data: what makes it upright}; 1 is upright."""


@contextmanager
def of_any_size() -> Iterator[None]:
    """Lets pictures of any size be read, which only those that this project wrote should be."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def read_picture(path: Path) -> Image.Image:
    """Returns the picture in a file, as mode RGB: that of ``read_with_alpha`` on white."""
    return on_white(read_with_alpha(path))


def read_with_alpha(path: Path) -> Image.Image:
    """Returns the picture in a file, as mode RGB, or RGBA if some pixel is transparent.

    Its orientation is applied, an embedded ICC profile is converted to sRGB, more bits are rounded
    to 8. What is damaged beside the pixels is ignored with a ``Notice``.

    Raises:
        UserError: not a picture of ``FORMATS``, truncated, animated, of floating point or signed
            pixels, or larger than ``PIL.Image.MAX_IMAGE_PIXELS``, 89 million (a decompression
            bomb).
    """
    try:
        picture, notes = _read(path)
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
        raise UserError(f"{path} {_what_is_wrong(start)}") from error
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    except Exception as error:  # Pillow's parsers raise anything when the bytes are malicious
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path} cannot be read as a picture, or is cut short: {reason}. Get it anew"
        ) from error
    if notes:
        warnings.warn(Notice(f"{path}: {'; '.join(notes)}"), stacklevel=3)
    return picture


def _read(path: Path) -> tuple[Image.Image, list[str]]:
    """Returns the picture of ``read_with_alpha``, and notes; raises what Pillow raises."""
    with warnings.catch_warnings():
        # Pillow warns of harmless damage too.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        content, notes = repaired(path.read_bytes())
        with Image.open(io.BytesIO(content), formats=_readable()) as picture:
            # MPO and HEIF are photographs with further views. n_frames would read the whole file.
            if getattr(picture, "is_animated", False) and picture.format not in ("MPO", "HEIF"):
                raise UserError("has several frames; one is needed. Save the one you want")
            check_pixels(picture)
            bits = 8
            if picture.format == "PNG":
                bits = content[24]
            elif isinstance(picture, TiffImagePlugin.TiffImageFile):
                bits = max(picture.tag_v2.get(258, (1,)))
            picture.load()
            turn, ignored = _turn(picture)
            upright, more = to_srgb(rounded(picture, content, bits), bits)
    if turn is not None:
        upright = upright.transpose(turn)
    upright.info.clear()  # Pillow would save the profile again, and the date
    return upright, [*notes, *ignored, *more]


def _readable() -> list[str]:
    """Returns the formats that are installed."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _turn(picture: Image.Image) -> tuple[Image.Transpose | None, list[str]]:
    """Returns what makes a picture upright, and a note if its EXIF data is damaged."""
    if picture.format == "HEIF":  # its decoder has done it
        return None, []
    with warnings.catch_warnings(record=True) as damage:
        warnings.simplefilter("always")
        try:
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception as error:  # noqa: BLE001 - the parser raises anything when it is damaged
            return None, [f"its EXIF data is ignored ({error})"]
    if orientation in (1, *_TURNS):
        return _TURNS.get(orientation), [
            f"its EXIF data is damaged ({each.message})" for each in damage[:1]
        ]
    return None, [f"its orientation {orientation!r} is ignored, because it is none of 1 to 8"]


def _what_is_wrong(start: bytes) -> str:
    """Returns the end of a sentence about a file that Pillow does not open."""
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS and "HEIF" not in Image.OPEN:
        return (
            "is a HEIC picture, which the package pillow-heif reads. Install that with `pip "
            "install pillow-heif`, or save the picture as JPEG"
        )
    for name in _readable():
        accepts = Image.OPEN[name][1]
        if accepts is not None and accepts(start):
            return (
                f"is damaged, or a kind of {name} that is not read. Get it anew, or save it as PNG "
                "with 8 or 16 bits"
            )
    content = f"it starts with {start!r}" if start else "it is empty"
    return f"is not a picture: {content}. Give a file in one of the formats {', '.join(FORMATS)}"


def write_png(
    picture: Image.Image,
    path: Path,
    text: Mapping[str, str],
    profile: bytes | None = None,
    dpi: int | None = None,
) -> None:
    """Writes a PNG with ``text`` as text chunks, atomically; equal input gives equal bytes.

    ``profile`` is an ICC profile, and ``dpi`` pixels per inch.
    """
    chunks = PngImagePlugin.PngInfo()
    for key, value in text.items():
        chunks.add_itxt(key, value)
    with replacing(path) as temporary:
        # A higher level takes twice as long and makes files of such pictures no smaller.
        options: dict[str, Any] = {"pnginfo": chunks, "icc_profile": profile, "compress_level": 1}
        if dpi is not None:
            options["dpi"] = (dpi, dpi)
        picture.save(temporary, format="PNG", **options)


def read_text(path: Path) -> dict[str, str]:
    """Returns the text chunks of a PNG."""
    with Image.open(path) as picture:
        assert isinstance(picture, PngImagePlugin.PngImageFile)
        return {key: str(value) for key, value in picture.text.items()}
