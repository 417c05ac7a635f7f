"""Rectangles of feature maps, and the overlapping pieces into which a large image is divided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Window(NamedTuple):
    """A rectangle of positions: rows from ``top`` to before ``bottom``, columns likewise."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.bottom - self.top, self.right - self.left

    @property
    def area(self) -> int:
        """The number of positions."""
        return self.size[0] * self.size[1]

    def pooled(self, times: int) -> Window:
        """Returns the window after some 2×2 poolings, each of which drops an odd last edge."""
        return Window(*(edge >> times for edge in self))

    def within(self, outer: Window) -> Window:
        """Returns the window in the coordinates of another one that contains it."""
        top, left = outer.top, outer.left
        return Window(self.top - top, self.bottom - top, self.left - left, self.right - left)

    def of(self, maps: Tensor) -> Tensor:
        """Returns a view of (…, H, W) maps."""
        return maps[..., self.top : self.bottom, self.left : self.right]

    def add(self, values: Tensor, whole: Tensor | None, size: Sequence[int]) -> Tensor:
        """Adds (1, C, …) values to whole maps of (H, W); None stands for zeros."""
        if self == whole_window(size):
            return values
        if whole is None:
            # In channels-last memory.
            whole = values.new_zeros((1, *size, values.shape[1])).permute(0, 3, 1, 2)
        self.of(whole).add_(values)
        return whole


class Piece(NamedTuple):
    """A window whose positions count, and around it those that their features depend on: its halo.

    Both are in the coordinates of the input of some layers.
    """

    inner: Window
    outer: Window

    @property
    def is_whole(self) -> bool:
        """Whether it has no halo, since there is no other piece."""
        return self.inner == self.outer

    def inner_of(self, maps: Tensor, poolings: int) -> Tensor:
        """Returns a view of the positions that count, of maps of the piece after some poolings."""
        return self.inner.pooled(poolings).within(self.outer.pooled(poolings)).of(maps)


def whole_window(size: Sequence[int]) -> Window:
    """Returns the window of all positions of an (H, W) image or map."""
    height, width = size
    return Window(0, height, 0, width)


def pieces(size: tuple[int, int], edge: int | None, halo: int = 0, grid: int = 1) -> list[Piece]:
    """Returns pieces that cover (H, W) positions and count each once.

    Args:
        size: (H, W).
        edge: the longest of a piece without its halo, a multiple of ``grid``; None: one piece.
        halo: the width of the positions around a piece that its features depend on.
        grid: what edges are multiples of, so that no pooling crosses them.
    """
    height, width = size
    if edge is None or max(size) <= edge:
        return [Piece(whole_window(size), whole_window(size))]
    halo = _multiple_from(halo, grid)
    return [
        Piece(
            Window(top, bottom, left, right),
            Window(
                max(0, top - halo),
                min(height, bottom + halo),
                max(0, left - halo),
                min(width, right + halo),
            ),
        )
        for top, bottom in _spans(height, edge, grid)
        for left, right in _spans(width, edge, grid)
    ]


def _spans(length: int, edge: int, grid: int) -> list[tuple[int, int]]:
    """Returns the fewest spans that cover a length, all but the last of the same length."""
    count = max(1, -(-length // edge))
    each = _multiple_from(max(1, -(-length // count)), grid)
    return [(start, min(length, start + each)) for start in range(0, max(1, length), each)]


def _multiple_from(value: int, grid: int) -> int:
    return -(-value // grid) * grid
