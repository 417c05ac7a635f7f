"""Contact sheets: all pictures of a figure in one PNG, for a pull request or a slide."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from math import ceil
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

from pipeline.config.schema import Figure
from pipeline.imaging.picture_files import read_picture, write_png

Tile = tuple[Path | None, Sequence[str]]
"""A picture, or None for a missing one, and the lines of text below it."""

EDGE, GAP, LINE, TITLE = 160, 12, 15, 22
"""In pixels: longest edge of a picture, space between pictures, height of a line of text and of
the title."""
ROW_TITLE, ROW_LINE = 150, 18
"""In pixels: width of the titles of rows, and height of a line of them."""
WIDEST_TITLE = 900
"""Pixels to which a title may widen a sheet whose pictures take less."""
LONGEST_TEXT = 500
"""Characters of a text that are looked at: more than fit anywhere."""
FONT = str(Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
BLACK, GREY, LIGHT_GREY = "#1a1a1a", "#6a6a6a", "#dddddd"


def write_contact_sheet(layout: Figure, rows: Sequence[Sequence[Tile]], path: Path) -> None:
    """Writes the pictures of a figure as a PNG; equal input gives equal bytes."""
    large, small = (ImageFont.truetype(FONT, size) for size in (18, 11))
    thumbnails = [[_thumbnail(file) for file, _ in row] for row in rows]
    lines = max(len(text) for row in rows for _, text in row)
    heights = [max(image.height for image in row) + lines * LINE + GAP for row in thumbnails]
    top = 2 * GAP + TITLE + (LINE + 4 if layout.column_titles else 0)
    left = GAP + (ROW_TITLE if layout.row_titles else 0)
    width = left + max(map(len, rows)) * (EDGE + GAP)
    title = _shortened(layout.title, large, max(width - 2 * GAP, WIDEST_TITLE))
    size = max(width, round(large.getlength(title)) + 2 * GAP), top + sum(heights)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, fill=BLACK, font=large)
    xs = [left + column * (EDGE + GAP) for column in range(max(map(len, rows)))]
    for x, text in zip(xs, layout.column_titles, strict=False):
        draw.text((x, top - LINE - 4), _shortened(text, small), fill=BLACK, font=small)
    for index, row in enumerate(rows):
        y = top + sum(heights[:index])
        if layout.row_titles:
            parts = re.split(r"(?<=,) ", layout.row_titles[index])[: heights[index] // ROW_LINE]
            text = "\n".join(_shortened(part, small, ROW_TITLE - GAP) for part in parts)
            draw.multiline_text((GAP, y), text, fill=BLACK, font=small)
        for x, image, (_, texts) in zip(xs, thumbnails[index], row, strict=False):
            sheet.paste(image, (x, y))
            for number, text in enumerate(texts):
                place = x, y + image.height + 2 + number * LINE
                draw.text(place, _shortened(text, small), fill=GREY, font=small)
    write_png(sheet, path, {})


def _thumbnail(file: Path | None) -> Image.Image:
    if file is None:
        return Image.new("RGB", (EDGE, EDGE * 3 // 4), LIGHT_GREY)
    picture = read_picture(file)
    picture.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
    return picture


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int = EDGE) -> str:
    """Returns a text on one line that is at most so many pixels wide."""
    text = " ".join(text.split())
    if len(text) <= LONGEST_TEXT and font.getlength(text) <= width:
        return text
    lengths = range(1, min(len(text), LONGEST_TEXT))
    fitting = bisect_right(lengths, width, key=lambda n: ceil(font.getlength(f"{text[:n]}…")))
    return f"{text[:fitting]}…"
