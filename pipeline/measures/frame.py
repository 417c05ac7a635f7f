"""Resizes and crops pictures to the one size at which all are measured."""

from torch import Tensor

from pipeline.imaging.tensors import resize

SHORT_EDGE = 192
"""Pixels of the short edge of a measured picture."""
LONGEST = 4 * SHORT_EDGE
"""The most pixels of the long edge: of a longer picture the middle is measured."""
GRID = 16
"""What both edges are multiples of, as the texture statistics need it."""


def framed(image: Tensor, like: Tensor | None = None) -> Tensor:
    """Returns a (1, 3, H, W) image, RGB in [0, 1], as it is measured.

    It has the proportions of ``like``, by default its own, and of these the middle.
    """
    height, width = (image if like is None else like).shape[-2:]
    scale = SHORT_EDGE / min(height, width)
    size = round(height * scale), round(width * scale)
    resized = resize(image, size, "bicubic", antialias=True)
    for axis, edge in zip((2, 3), size, strict=True):
        kept = min(edge // GRID * GRID, LONGEST)
        resized = resized.narrow(axis, (edge - kept) // 2, kept)
    return resized.contiguous()
