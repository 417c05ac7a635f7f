"""Contact sheets: a figure's pictures on one PNG, for a pull request or a slide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

from pipeline.imaging.picture_files import read_picture, write_png

Tile = tuple[Path | None, Sequence[str]]
"""A picture, None where there is none, and the lines beneath it."""

EDGE = 160
"""Longest edge of a picture on the sheet, in pixels."""
GAP, LINE = 12, 15
FONT = str(Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
MISSING, INK, SOFT, PAPER = "#dddddd", "#1a1a1a", "#6a6a6a", "#ffffff"


def contact_sheet(
    title: str,
    rows: Sequence[Sequence[Tile]],
    path: Path,
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
) -> None:
    """Writes rows of pictures with their lines of text; the same pictures, the same bytes."""
    pictures = [[_thumbnail(file) for file, _ in row] for row in rows]
    columns = max(map(len, rows))
    large, small = (ImageFont.truetype(FONT, size) for size in (18, 11))
    lines = max(len(text) for row in rows for _, text in row)
    heights = [max(picture.height for picture in row) + lines * LINE + GAP for row in pictures]
    top, left = 2 * GAP + 22 + (LINE + 4 if column_titles else 0), GAP + (150 if row_titles else 0)
    width = max(left + columns * (EDGE + GAP), round(large.getlength(title)) + 2 * GAP)
    sheet = Image.new("RGB", (width, top + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, fill=INK, font=large)
    for column, text in enumerate(column_titles):
        draw.text(
            (left + column * (EDGE + GAP), top - LINE - 4), _cut(text, small), fill=INK, font=small
        )
    y = top
    for index, (row, height) in enumerate(zip(pictures, heights, strict=True)):
        if row_titles:
            draw.multiline_text((GAP, y), _broken(row_titles[index]), fill=INK, font=small)
        for column, picture in enumerate(row):
            x = left + column * (EDGE + GAP)
            sheet.paste(picture, (x, y))
            for number, text in enumerate(rows[index][column][1]):
                place = (x, y + picture.height + 2 + number * LINE)
                draw.text(place, _cut(text, small), fill=SOFT, font=small)
        y += height
    write_png(sheet, path, {})


def _thumbnail(file: Path | None) -> Image.Image:
    if file is None:
        return Image.new("RGB", (EDGE, EDGE * 3 // 4), MISSING)
    picture = read_picture(file)
    picture.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
    return picture


def _broken(text: str) -> str:
    return text.replace(", ", ",\n")


def _cut(text: str, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(text) <= EDGE:
        return text
    while font.getlength(f"{text}…") > EDGE:
        text = text[:-1]
    return f"{text}…"
