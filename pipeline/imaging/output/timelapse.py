"""The time-lapse: an animation of a run's intermediate images that ends with its result."""

from collections.abc import Sequence
from math import sqrt
from pathlib import Path

from PIL import Image

from pipeline.files import replacing
from pipeline.imaging.picture_files import of_any_size, read_picture

DURATION_MS = 10_000
"""How long the animation takes, as far as each frame takes 40 to 400 ms."""
LAST_FRAME_MS = 2_000
LARGEST = 100_000_000
"""Pixels of all frames: they are in memory at once, by 3 bytes each."""
LONGEST_EDGE = 16383
"""Pixels of an edge that WebP holds."""


@of_any_size()
def write_timelapse(pictures: Sequence[Path], path: Path) -> None:
    """Writes pictures as frames of an animated WebP, atomically; equal input gives equal bytes.

    Each is enlarged to the size of the last. All are reduced if that has too many pixels for a WebP
    or, in so many frames, for the memory. A frame that hardly differs from the one before is not
    stored: that one lasts longer.
    """
    *_, result = pictures
    width, height = read_picture(result).size
    fitting = sqrt(LARGEST / (len(pictures) * width * height))
    scale = min(1, fitting, LONGEST_EDGE / max(width, height))
    size = max(1, int(width * scale)), max(1, int(height * scale))
    frames = [read_picture(each).resize(size, Image.Resampling.BICUBIC) for each in pictures]
    duration = min(400, max(40, DURATION_MS // len(frames)))
    with replacing(path) as temporary:
        frames[0].save(
            temporary,
            format="WEBP",
            save_all=True,
            append_images=frames[1:],
            duration=[duration] * (len(frames) - 1) + [LAST_FRAME_MS],
            loop=0,
            quality=80,
        )
