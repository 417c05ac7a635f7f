"""Repairs JPEG and PNG files that are damaged outside their pixels.

Pillow refuses some of them, and reads some JPEGs that are cut short with grey in place of pixels.
"""

import io
import re
import struct
import zlib

from PIL import Image, PngImagePlugin

# An ICC profile of a printer takes a few MiB; Pillow expands a chunk to at most 1 MiB.
PngImagePlugin.MAX_TEXT_CHUNK = 16 * 2**20

_PNG, _JPEG, _END_OF_JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\xff\xd9"
_END_MISSING = "its end marker is missing"
_FRAME_CHUNKS = (b"fcTL", b"fdAT")
_READ_CHUNKS = (b"iCCP", b"eXIf", b"acTL")
_XMP = b"iTXtXML:com.adobe.xmp\0"  # it may hold the orientation
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
_ARITHMETIC_FRAMES = (0xC9, 0xCA, 0xCB)
_FRAMES = (0xC0, 0xC1, 0xC2, 0xC3, *_ARITHMETIC_FRAMES)


def repaired(content: bytes) -> tuple[bytes, list[str]]:
    """Returns a picture file without what is damaged outside its pixels, and notes of what that is.

    Raises:
        OSError: pixels of a JPEG are missing.
    """
    if content.startswith(_PNG):
        return _repaired_png(content)
    return _repaired_jpeg(content) if content.startswith(_JPEG) else (content, [])


def _repaired_png(content: bytes) -> tuple[bytes, list[str]]:
    """Leaves out the chunks that are damaged, and those that nobody reads."""
    kept, notes, seen, position, kind = [_PNG], [], set(), len(_PNG), b""
    while position + 8 <= len(content) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, position)
        if not kind.isalpha():
            break
        chunk = content[position : position + 12 + length]
        position += len(chunk)
        if kind[:1].isupper() or kind == b"tRNS":  # which decides pixels too
            kept.append(chunk)
        elif chunk[-4:] != struct.pack(">I", zlib.crc32(chunk[4:-4])):
            notes.append(f"its damaged chunk {kind.decode()} is ignored")
        elif kind in _FRAME_CHUNKS:
            kept.append(chunk)
        elif kind not in seen and (kind in _READ_CHUNKS or chunk[4:].startswith(_XMP)):
            seen.add(kind)
            if reason := _refusal([*kept[:2], chunk]):
                notes.append(f"its chunk {kind.decode()} is ignored ({reason})")
            else:
                kept.append(chunk)
    if kind != b"IEND":
        notes.append(_END_MISSING)
    elif position < len(content):
        notes.append(f"{len(content) - position} bytes after its end are ignored")
    return b"".join(kept), notes


def _refusal(chunks: list[bytes]) -> str:
    """Returns why Pillow does not read a PNG's last chunk; empty if it does."""
    start_of_pixels = struct.pack(">I4s", 0, b"IDAT")
    try:
        with PngImagePlugin.PngImageFile(io.BytesIO(b"".join([*chunks, start_of_pixels]))) as png:
            return "it is damaged" if png.info.get("icc_profile", b"") is None else ""
    except Exception as error:  # noqa: BLE001 - the parser raises anything when bytes are malicious
        return str(error) or type(error).__name__


def _repaired_jpeg(content: bytes) -> tuple[bytes, list[str]]:
    """Adds a missing end marker, if all pixels are there."""
    components, scans, more_views, position, end = 0, [], False, 2, None
    while end is None and (found := _MARKER.search(content, position)):
        marker, position = found[1][0], found.end()
        length = int.from_bytes(content[position : position + 2], "big")
        segment = content[position + 2 : position + length]
        if marker == _END_OF_JPEG[1]:
            end = found.start()
        elif marker in _ARITHMETIC_FRAMES:
            return content, []  # Its data may end early. Pillow wants its end marker.
        elif marker in _FRAMES:
            components = segment[5]
        elif marker == 0xDA:
            scans.append(segment)
        more_views |= segment.startswith(b"MPF\0")
        position += 2 + len(segment)
    # Half of an end marker would make a marker of what is added behind it.
    data = content[:end] if end is not None else content.removesuffix(b"\xff")
    if end is None and not _have_all_coefficients(scans, components):
        raise OSError("scans are missing at its end")
    # Where data is missing, libjpeg reads what is added behind it.
    if _checksum(data + _END_OF_JPEG) != _checksum(data + b"\xaa" * 64 + _END_OF_JPEG):
        raise OSError("pixels are missing at its end")
    if end is None:
        return data + _END_OF_JPEG, [_END_MISSING]
    trailing = len(content) - end - len(_END_OF_JPEG)
    if trailing and not more_views:
        return content, [f"{trailing} bytes after its end are ignored"]
    return content, []


def _have_all_coefficients(scans: list[bytes], components: int) -> bool:
    """Returns whether all 64 coefficients of each component are there, with all their bits."""
    whole = set()
    for scan in scans:
        *_, first, last, bits = scan
        names = scan[1 : 1 + 2 * scan[0] : 2]
        if not bits & 15:  # no bits are left for a later scan
            whole |= {(name, index) for name in names for index in range(first, last + 1)}
    return len(whole) == 64 * components > 0


def _checksum(content: bytes) -> int:
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as picture:
        return zlib.crc32(picture.tobytes())
