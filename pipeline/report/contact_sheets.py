"""Contact sheets: all pictures of a figure in one PNG, for a pull request or a slide."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

from pipeline.config.schema import Figure
from pipeline.imaging.picture_files import read_picture, write_png

Tile = tuple[Path | None, Sequence[str]]
"""A picture, or None for a missing one, and the lines of text below it."""

EDGE, GAP, LINE, TITLE, ROW_TITLE = 160, 12, 15, 22, 150
"""In pixels: longest edge of a picture, space between pictures, height of a line of text and of
the title, width of the titles of rows."""
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
    size = max(width, round(large.getlength(layout.title)) + 2 * GAP), top + sum(heights)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), layout.title, fill=BLACK, font=large)
    xs = [left + column * (EDGE + GAP) for column in range(max(map(len, rows)))]
    for x, text in zip(xs, layout.column_titles, strict=False):
        draw.text((x, top - LINE - 4), _shortened(text, small), fill=BLACK, font=small)
    for index, row in enumerate(rows):
        y = top + sum(heights[:index])
        if layout.row_titles:
            text = layout.row_titles[index].replace(", ", ",\n")
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


def _shortened(text: str, font: ImageFont.FreeTypeFont) -> str:
    """Returns a text that is at most as wide as a picture."""
    shortened = text
    while font.getlength(shortened) > EDGE:
        text = text[:-1]
        shortened = f"{text}…"
    return shortened
