"""Writes a result as PNG, TIFF, JPEG or WebP, by the suffix of its file."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pipeline.errors import UserError
from pipeline.files import replacing
from pipeline.imaging.output.deep_png import encode_png
from pipeline.imaging.output.srgb_profile import SRGB_PROFILE
from pipeline.imaging.picture_files import write_png
from pipeline.imaging.tensors import to_pixels


class Format(NamedTuple):
    """What a format can hold: ``bits`` of a channel at most, and pixels of an edge."""

    name: str
    bits: int = 8
    alpha: bool = True
    longest_edge: int | None = None


_TIFF, _JPEG = Format("TIFF", bits=16), Format("JPEG", alpha=False, longest_edge=65500)
FORMATS = {
    ".png": Format("PNG", bits=16),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": Format("WebP", longest_edge=16383),
}
"""{suffix in lower case: format}."""
_QUALITY = 95
_DESCRIPTION, _SOFTWARE = 270, 305
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_INCH = 2
_LONGEST_NAME = 200
"""Bytes of a file's name; the temporary file has a longer one, and disks take 255."""
_LONGEST_DESCRIPTION = 60_000
"""Bytes; all EXIF data of a JPEG must fit into 65,533."""


def check_output(
    path: Path, bits: int = 8, alpha: bool = False, size: tuple[int, int] | None = None
) -> None:
    """Raises ``UserError`` if a result cannot be written to a path, before it is computed.

    ``size`` is its (H, W), if that is known.
    """
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise UserError(
            f"{path.parent}: the name of the file in it has more than {_LONGEST_NAME} bytes. "
            "Shorten it"
        )
    if path.is_dir():
        raise UserError(f"{path} is a folder. Add the name of a file, such as result.png")
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        known = f"{', '.join(list(FORMATS)[:-1])} or {list(FORMATS)[-1]}"
        ending = repr(path.suffix) if path.suffix else "no suffix"
        raise UserError(f"{path} ends in {ending}. Pictures are written as {known}: use one")
    if bits > form.bits:
        raise UserError(
            f"{path}: {form.name} holds {form.bits} bits of a colour, not {bits}. Ask for "
            f"{form.bits} bits, or end the name in {_suffixes(bits=bits)}"
        )
    if alpha and not form.alpha:
        raise UserError(
            f"{path}: {form.name} holds no transparency. Turn alpha off, or end the name in "
            f"{_suffixes(bits=bits)}"
        )
    if size and form.longest_edge and max(size) > form.longest_edge:
        raise UserError(
            f"{path}: {form.name} holds edges of at most {form.longest_edge} pixels, not "
            f"{max(size)}. Reduce the size, or end the name in {_suffixes(bits=16)}"
        )
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}. Make it, or name another")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{path}: you may not write into the folder {path.parent}. Name another")


def _suffixes(bits: int) -> str:
    """Returns the suffixes of formats with transparency and as many bits."""
    return " or ".join(suffix for suffix, f in FORMATS.items() if f.alpha and f.bits >= bits)


def write_result(
    image: Tensor,
    path: Path,
    *,
    bits: int = 8,
    alpha: Tensor | None = None,
    dpi: int | None = None,
    text: Mapping[str, str],
) -> None:
    """Writes an image with the sRGB profile, atomically; equal input gives equal bytes.

    The path must pass ``check_output``, which is called.

    Args:
        image: (1, 3, H, W), RGB in [0, 1]; values outside are clamped.
        path: its suffix, a key of ``FORMATS``, decides the format.
        bits: of a channel, 8 or 16.
        alpha: opacity, (1, 1, H, W) in [0, 1].
        dpi: pixels per inch, which the file names for printing.
        text: {keyword: text}: text chunks in a PNG, and elsewhere JSON as image description; a
            JPEG or WebP leaves out more than 60,000 bytes.
    """
    height, width = image.shape[-2:]
    check_output(path, bits, alpha is not None, (height, width))
    if alpha is not None:
        image = torch.cat([image.detach(), alpha.to(image)], dim=1)
    pixels = to_pixels(image, bits)
    form = FORMATS[path.suffix.lower()]
    if form.name == "PNG" and bits == 8:
        write_png(Image.fromarray(pixels), path, text, SRGB_PROFILE, dpi)
        return
    with replacing(path) as temporary:
        if form.name == "PNG":
            with temporary.open("wb") as file:
                file.writelines(encode_png(pixels, text, SRGB_PROFILE, dpi))
        elif form.name == "TIFF":
            import tifffile

            tifffile.imwrite(
                temporary,
                pixels,
                photometric="rgb",
                compression="zlib",
                predictor=True,
                extrasamples=None if alpha is None else ["unassalpha"],
                iccprofile=SRGB_PROFILE,
                resolution=None if dpi is None else (dpi, dpi),
                resolutionunit="INCH",
                description=_as_description(text),
                software=text.get("Software", ""),
                metadata=None,  # it would describe the shape of the array
            )
        else:
            Image.fromarray(pixels).save(
                temporary,
                format=form.name,
                quality=_QUALITY,
                icc_profile=SRGB_PROFILE,
                exif=_exif(text, dpi),
                **{"subsampling": 0} if form.name == "JPEG" else {},
                **{} if dpi is None or form.name != "JPEG" else {"dpi": (dpi, dpi)},
            )


def _as_description(text: Mapping[str, str]) -> str:
    """Returns ASCII, as TIFF and EXIF want it."""
    return json.dumps(dict(text))


def _exif(text: Mapping[str, str], dpi: int | None) -> Image.Exif:
    exif, description = Image.Exif(), _as_description(text)
    if len(description) <= _LONGEST_DESCRIPTION:
        exif[_DESCRIPTION] = description
    exif[_SOFTWARE] = text.get("Software", "")
    if dpi is not None:
        exif[_X_RESOLUTION] = exif[_Y_RESOLUTION] = float(dpi)
        exif[_RESOLUTION_UNIT] = _INCH
    return exif
