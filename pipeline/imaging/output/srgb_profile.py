"""The ICC profile of sRGB that results carry, with the same bytes at any time on any machine.

That of Pillow has the date of its making in it.
"""

import struct

_D50 = (0.9642, 1.0, 0.8249)
_FROM_D65 = (1.04788, 0.02292, -0.0502, 0.02959, 0.99048, -0.01706, -0.00923, 0.01508, 0.75168)
_PRIMARIES = {
    b"rXYZ": (0.43607, 0.22249, 0.01392),
    b"gXYZ": (0.38515, 0.71687, 0.09708),
    b"bXYZ": (0.14307, 0.06061, 0.7141),
}
_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
"""g, a, b, c, d of the curve (a x + b)^g from d on, and c x below."""
_PARAMETRIC = 3  # ICC's number for curves of this form


def _fixed_point(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(65536 * value) for value in values))


def _text(text: str) -> bytes:
    encoded = text.encode("utf-16-be")
    head = struct.pack(">4xII4sII", 1, 12, b"enUS", len(encoded), 28)
    return b"mluc" + head + encoded


def _profile() -> bytes:
    """Returns a display profile of version 4.3 (ICC.1:2010), of a matrix and three curves."""
    curve = b"para" + struct.pack(">4xHxx", _PARAMETRIC) + _fixed_point(*_CURVE)
    tags = {
        b"desc": _text("sRGB"),
        b"cprt": _text("CC0"),
        b"wtpt": b"XYZ \0\0\0\0" + _fixed_point(*_D50),
        b"chad": b"sf32\0\0\0\0" + _fixed_point(*_FROM_D65),
        **{name: b"XYZ \0\0\0\0" + _fixed_point(*value) for name, value in _PRIMARIES.items()},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    start = 128 + 4 + 12 * len(tags)
    table, content, places = struct.pack(">I", len(tags)), b"", dict[bytes, int]()
    for name, value in tags.items():
        if value not in places:  # the three curves are one
            places[value] = start + len(content)
            content += value + bytes(-len(value) % 4)
        table += name + struct.pack(">II", places[value], len(value))
    header = struct.pack(">II4s", start + len(content), 0, b"\x04\x30\0\0") + b"mntrRGB XYZ "
    header += struct.pack(">6H4s", 2016, 6, 27, 0, 0, 0, b"acsp")  # any date, but always the same
    return header.ljust(68, b"\0") + _fixed_point(*_D50).ljust(60, b"\0") + table + content


SRGB_PROFILE = _profile()
