"""Encodes PNG with 16 bits for each channel, which Pillow cannot write in colour."""

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_COLOUR_TYPES = {3: 2, 4: 6}  # {channels: PNG's number for RGB and RGBA}
_FILTER_LEFT = 1  # each byte is stored as its difference from that of the pixel on its left
_ROWS = 256  # that are compressed at a time


def encode_png(
    pixels: NDArray[np.uint16], text: Mapping[str, str], profile: bytes, dpi: int | None
) -> Iterator[bytes]:
    """Yields the parts of a PNG file; equal input gives equal bytes.

    Args:
        pixels: (H, W, 3) or (H, W, 4) with alpha last.
        text: {keyword: text}, as iTXt chunks.
        profile: the ICC profile, as iCCP chunk.
        dpi: pixels per inch, as pHYs chunk.
    """
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[channels], 0, 0, 0)
    yield b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header)
    yield _chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile))
    if dpi is not None:
        per_metre = round(dpi / 0.0254)
        yield _chunk(b"pHYs", struct.pack(">IIB", per_metre, per_metre, 1))
    for keyword, value in text.items():
        yield _chunk(b"iTXt", keyword.encode("latin-1") + b"\0\0\0\0\0" + value.encode())
    compressor = zlib.compressobj()
    for start in range(0, height, _ROWS):
        rows = _filtered(pixels[start : start + _ROWS])
        if data := compressor.compress(rows.tobytes()):
            yield _chunk(b"IDAT", data)
    yield _chunk(b"IDAT", compressor.flush()) + _chunk(b"IEND", b"")


def _filtered(pixels: NDArray[np.uint16]) -> NDArray[Any]:
    """Returns rows of bytes, each begun by the number of its filter."""
    stored = pixels.astype(">u2")  # most significant byte first
    values = stored.reshape(len(stored), -1).view(np.uint8)
    pixel = stored.shape[2] * 2
    rows = np.empty((len(values), 1 + values.shape[1]), np.uint8)
    rows[:, 0] = _FILTER_LEFT
    rows[:, 1:] = values
    rows[:, 1 + pixel :] -= values[:, :-pixel]
    return rows


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
