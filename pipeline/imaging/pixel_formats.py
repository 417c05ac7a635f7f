"""Converts every kind of pixel that Pillow opens to 8-bit sRGB: depth, sign, profile, opacity.

Pillow leaves greys of more than 8 bits as they are stored, whichever value is white.
"""

import io
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageCms, TiffImagePlugin

from pipeline.errors import UserError
from pipeline.imaging.output.srgb_profile import SRGB_PROFILE

_DEEP_GREYS = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_MODES_OF_PROFILES = ("L", "I;16", "RGB", "CMYK", "YCbCr", "LAB")
# Numbers of tags of a TIFF, and their values.
_BITS, _PHOTOMETRIC, _FILL_ORDER, _SAMPLES, _PLANES, _SAMPLE_FORMAT = 258, 262, 266, 277, 284, 339
_EXTRA_SAMPLES, _SUBSAMPLING = 338, 530
_WHITE_IS_ZERO, _SEPARATE, _SIGNED, _UNASSOCIATED = 0, 2, 2, 2


def check_pixels(picture: Image.Image) -> None:
    """Raises ``UserError`` without a path if a picture that is not loaded cannot be converted."""
    if picture.mode == "F":
        raise UserError("has floating point pixels. Save it with 8 or 16 bits")
    if not isinstance(picture, TiffImagePlugin.TiffImageFile):
        return
    tags, packed = picture.tag_v2, picture.info["compression"] != "raw"
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise UserError("has signed pixels. Save it with unsigned pixels of 8 or 16 bits")
    if picture.mode == "YCbCr" and tags.get(_SUBSAMPLING, (1, 1)) != (1, 1):
        raise UserError("has colours of a lower resolution, without compression. Save it as RGB")
    if tags.get(_PLANES) != _SEPARATE:
        return
    # Pillow reads some of the others as if they were interleaved, or loses their alpha.
    readable = picture.mode in ("RGB", "CMYK") or tags.get(_SAMPLES, 1) == 1
    if not packed:
        plain = (max(tags[_BITS]), tags.get(_FILL_ORDER, 1)) == (8, 1)
        readable &= plain and picture.mode in ("RGB", "CMYK", "L", "P")
        readable &= tags[_PHOTOMETRIC] != _WHITE_IS_ZERO
    if not readable:
        raise UserError("has its channels in separate planes. Save it with interleaved channels")


def rounded(picture: Image.Image, content: bytes, bits: int) -> Image.Image:
    """Returns a loaded picture with colours of 16 bits rounded to 8; Pillow takes the upper byte.

    ``content`` is its file. What only Pillow decodes, such as LZW in a TIFF, stays as it is.
    """
    if bits != 16 or picture.mode not in ("RGB", "RGBA"):
        return picture
    try:
        if isinstance(picture, TiffImagePlugin.TiffImageFile):
            # Pillow has divided by the alpha where it is premultiplied, and dropped other channels.
            own = {"RGB": None, "RGBA": (_UNASSOCIATED,)}[picture.mode]
            values = tifffile.imread(io.BytesIO(content))
            values = values if picture.tag_v2.get(_EXTRA_SAMPLES) == own else values[..., :0]
        else:
            values = _values_of_png(content)
    except Exception:  # noqa: BLE001 - decoders raise anything
        return picture
    shape = picture.height, picture.width, len(picture.mode)
    if values.dtype != np.uint16 or values.shape != shape:
        return picture
    reduced = Image.fromarray(_to_eight_bits(values))
    reduced.info = picture.info
    return reduced


def _values_of_png(content: bytes) -> NDArray[Any]:
    # Here, because most pictures can be read without these packages, which take seconds.
    import torch
    from torchvision.io import ImageReadMode, decode_png

    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    values: NDArray[Any] = decode_png(data, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    return values


def to_srgb(picture: Image.Image, bits: int) -> tuple[Image.Image, list[str]]:
    """Returns a loaded picture, and notes of what is ignored.

    Its mode is RGB, or RGBA if some pixel is transparent.
    ``bits`` are those of a stored value, which may be fewer than those of Pillow's mode.
    """
    notes: list[str] = []
    alpha, profile = _alpha(picture, bits), picture.info.get("icc_profile")
    if picture.mode in _DEEP_GREYS:
        colours = _with_sixteen_bits(picture, bits)
    elif picture.mode in ("P", "PA"):  # by way of RGBA, because bytes as transparency are a warning
        colours = picture.convert("RGBA" if alpha else "RGB").convert("RGB")
    elif picture.mode == "La":
        colours = picture.convert("LA").convert("L")
    elif picture.mode not in _MODES_OF_PROFILES:
        colours = picture.convert("L" if picture.mode in ("LA", "1") else "RGB")
    else:
        colours = picture
    if profile and profile != SRGB_PROFILE:
        try:
            colours = _from_profile(colours, profile)
        except (ImageCms.PyCMSError, OSError) as error:
            notes.append(f"its ICC profile is ignored ({error})")
    colours = _with_eight_bits(colours).convert("RGB")
    if alpha is not None and alpha.getextrema() != (255, 255):
        colours.putalpha(alpha)
    return colours, notes


def on_white(picture: Image.Image) -> Image.Image:
    """Returns a picture of mode RGB or RGBA as mode RGB, composited on white."""
    if picture.mode == "RGB":
        return picture
    white = Image.new("RGB", picture.size, "white")
    return Image.composite(picture.convert("RGB"), white, picture.getchannel("A"))


def _alpha(picture: Image.Image, bits: int) -> Image.Image | None:
    """Returns the opacity of a picture as mode L, or None if it has none."""
    # A PNG may name one transparent colour, which Pillow leaves at the depth of the file.
    colour = picture.info.get("transparency")
    if colour is not None and picture.mode in _DEEP_GREYS:
        return Image.fromarray(np.where(np.asarray(picture) == colour, 0, 255).astype(np.uint8))
    if isinstance(colour, tuple) and bits == 16:
        picture.info["transparency"] = tuple(_to_eight_bits(np.array(colour)).tolist())
    elif isinstance(colour, int) and picture.mode == "L" and bits in (2, 4):
        picture.info["transparency"] = colour * 255 // (2**bits - 1)
    if not picture.has_transparency_data:
        return None
    return (picture.convert("LA") if picture.mode == "La" else picture.convert("RGBA")).getchannel(
        "A"
    )


def _with_sixteen_bits(picture: Image.Image, bits: int) -> Image.Image:
    """Returns greys of 12, 16 or 32 bits as mode I;16, in which 65535 is white."""
    values = np.asarray(picture)
    if bits != 16:
        values = values.astype(np.uint32)
        values = values >> (bits - 16) if bits > 16 else values * 65535 // (2**bits - 1)
    if isinstance(picture, TiffImagePlugin.TiffImageFile) and not picture.tag_v2.get(_PHOTOMETRIC):
        values = 65535 - values
    return Image.fromarray(values.astype(np.uint16))


def _with_eight_bits(picture: Image.Image) -> Image.Image:
    if picture.mode != "I;16":
        return picture
    return Image.fromarray(_to_eight_bits(np.asarray(picture)))


def _to_eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Returns values of 16 bits rounded to 8."""
    values = values.astype(np.uint32)
    values *= 255  # in place, because a picture may have 89 million pixels
    values += 32767
    values //= 65535
    return values.astype(np.uint8)


def _from_profile(picture: Image.Image, profile: bytes) -> Image.Image:
    source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    space = source.profile.xcolor_space.strip()
    if space == "RGB" and picture.mode in ("L", "I;16", "YCbCr"):
        picture = _with_eight_bits(picture).convert("RGB")
    elif space == "GRAY" and picture.mode == "RGB":
        red, green, blue = picture.split()
        if not any(ImageChops.difference(red, each).getbbox() for each in (green, blue)):
            picture = red  # of a palette, or of grey with alpha at 16 bits
    # Without optimisation lcms is exact in the shadows of linear greys, and slower.
    flags = ImageCms.Flags.NOOPTIMIZE if space == "GRAY" else ImageCms.Flags.NONE
    converted = ImageCms.profileToProfile(picture, source, srgb, outputMode="RGB", flags=flags)
    assert converted is not None  # it is changed in place only when asked to
    return converted
