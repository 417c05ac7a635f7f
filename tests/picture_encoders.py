"""TIFF, PNG and ICC files written out by hand, of the kinds that Pillow reads and cannot write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[Any]
"""Whole numbers of shape (H, W, channels)."""


def packed(samples: Samples, bits: int, order: str) -> bytes:
    """Returns samples of 1 to 32 bits, most significant bit first, each row from a new byte."""
    if bits in (16, 32):
        return samples.astype(f"{order}u{bits // 8}").tobytes()
    rows = samples.reshape(len(samples), -1, 1).astype(np.uint32)
    single = (rows >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(single.astype(np.uint8).reshape(len(samples), -1), axis=1).tobytes()


def tiff(
    samples: Samples,
    bits: int = 8,
    photometric: int = 1,
    *,
    order: str = "<",
    sample_format: int = 1,
    extra: Sequence[int] = (),
    compressed: bool = False,
    planes: bool = False,
    profile: bytes = b"",
    tags: Sequence[tuple[int, Sequence[int]]] = (),
) -> bytes:
    """Returns a TIFF of one strip, or of one for each channel; ``tags`` hold 16-bit numbers."""
    height, width, channels = samples.shape
    parts = np.split(samples, channels, axis=2) if planes else [samples]
    strips = [packed(part, bits, order) for part in parts]
    if compressed:
        strips = [zlib.compress(strip) for strip in strips]
    entries: list[tuple[int, str, Sequence[int]]] = [
        (256, "H", [width]),
        (257, "H", [height]),
        (258, "H", [bits] * channels),
        (259, "H", [8 if compressed else 1]),
        (262, "H", [photometric]),
        (277, "H", [channels]),
        (278, "H", [height]),
        (284, "H", [2 if planes else 1]),
        (339, "H", [sample_format] * channels),
        *((number, "H", values) for number, values in tags),
    ]
    if extra:
        entries.append((338, "H", extra))
    if profile:
        entries.append((34675, "B", profile))
    ends = np.cumsum([8, *map(len, strips)]).tolist()
    entries += [(273, "I", ends[:-1]), (279, "I", [len(strip) for strip in strips])]
    count = len(entries)
    directory, values = struct.pack(order + "H", count), b""
    start = ends[-1] + 2 + 12 * count + 4
    for number, kind, numbers in sorted(entries):
        value = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        code = {"B": 7, "H": 3, "I": 4}[kind]
        directory += struct.pack(order + "HHI", number, code, len(numbers))
        if len(value) > 4:
            directory += struct.pack(order + "I", start + len(values))
            values += value
        else:
            directory += value.ljust(4, b"\0")
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", ends[-1])
    return magic + b"".join(strips) + directory + bytes(4) + values


def chunk(kind: bytes, content: bytes = b"", checksum: int | None = None) -> bytes:
    """Returns a chunk of a PNG, with its own checksum unless another is given."""
    own = zlib.crc32(kind + content)
    end = struct.pack(">I", own if checksum is None else checksum)
    return struct.pack(">I", len(content)) + kind + content + end


def png(
    samples: Samples,
    bits: int = 8,
    colour_type: int = 2,
    *,
    before: bytes = b"",
    after: bytes = b"",
    end: bytes | None = None,
) -> bytes:
    """Returns a PNG with chunks before and after its pixels."""
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + packed(row[None], bits, ">") for row in samples)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + before + pixels + after + (chunk(b"IEND") if end is None else end)


def iccp(profile: bytes) -> bytes:
    """Returns the chunk of a PNG that holds an ICC profile."""
    return chunk(b"iCCP", b"profile\0\0" + zlib.compress(profile))


def icc_profile(space: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ") -> bytes:
    """Returns a version 2 ICC profile of a colour space, ``GRAY``, ``RGB `` or ``CMYK``."""
    tags = {b"desc": _description(b"a test"), b"wtpt": xyz(0.9642, 1, 0.8249)} | tags
    table, content = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    size = struct.pack(">I", start + len(content))
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    header = size + b"lcms\x02\x40\0\0" + kind + space + connection + bytes(12) + b"acsp"
    white = xyz(0.9642, 1, 0.8249)[8:]
    return (header + bytes(28) + white).ljust(128, b"\0") + table + content


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * value) for value in values))


def gamma(exponent: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * exponent)) + b"\0\0"


def _description(text: bytes) -> bytes:
    return b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + bytes(79)


def grey_profile(exponent: float) -> bytes:
    return icc_profile(b"GRAY", {b"kTRC": gamma(exponent)})


def wide_gamut_profile() -> bytes:
    """Returns ProPhoto RGB."""
    primaries = {
        b"rXYZ": xyz(0.7977, 0.2880, 0),
        b"gXYZ": xyz(0.1352, 0.7119, 0),
        b"bXYZ": xyz(0.0313, 0.0001, 0.8249),
    }
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma(1.8))
    return icc_profile(b"RGB ", primaries | curves)


def cmyk_profile() -> bytes:
    """Returns a profile of some printer, as a table of the Lab colours of its 16 full inks."""
    table = b""
    for ink in range(16):
        cyan, magenta, yellow, black = (ink >> shift & 1 for shift in (3, 2, 1, 0))
        light = 100 * (1 - black) * (1 - cyan / 2) * (1 - magenta / 2) * (1 - yellow / 10)
        red, gold = 60 * magenta - 40 * cyan, 70 * yellow - 50 * cyan
        table += bytes([round(2.55 * light), 128 + (1 - black) * red, 128 + (1 - black) * gold])
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    curve = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + curve * 4 + table + curve * 3
    return icc_profile(b"CMYK", {b"A2B0": table}, connection=b"Lab ")
