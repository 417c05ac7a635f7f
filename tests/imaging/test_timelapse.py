"""The time-lapse shows every picture at the size of the last."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.imaging.output import timelapse
from pipeline.imaging.output.timelapse import write_timelapse

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    made = []
    for number, (size, colour) in enumerate(
        zip([(12, 8), (24, 16), (48, 32)], COLOURS, strict=True)
    ):
        made.append(tmp_path / f"{number}.png")
        Image.new("RGB", size, colour).save(made[-1])
    return made


def test_every_picture_is_a_frame_of_the_size_of_the_last(
    pictures: list[Path], tmp_path: Path
) -> None:
    write_timelapse(pictures, tmp_path / "a.webp")
    with Image.open(tmp_path / "a.webp") as film:
        assert (film.n_frames, film.size, film.info["loop"]) == (3, (48, 32), 0)
        for number, colour in enumerate(COLOURS):
            film.seek(number)
            shown = np.asarray(film.convert("RGB"), float).mean((0, 1))
            assert shown == pytest.approx(colour, abs=6)
        assert film.info["duration"] == timelapse.LAST_FRAME_MS


def test_equal_pictures_give_equal_bytes(pictures: list[Path], tmp_path: Path) -> None:
    for name in ("a.webp", "b.webp"):
        write_timelapse(pictures, tmp_path / name)
    assert (tmp_path / "a.webp").read_bytes() == (tmp_path / "b.webp").read_bytes()


def test_frames_that_do_not_fit_into_memory_are_reduced(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timelapse, "LARGEST", 3 * 24 * 16)
    write_timelapse(pictures, tmp_path / "a.webp")
    with Image.open(tmp_path / "a.webp") as film:
        assert (film.n_frames, film.size) == (3, (24, 16))


def test_one_picture_is_enough(pictures: list[Path], tmp_path: Path) -> None:
    write_timelapse(pictures[-1:], tmp_path / "a.webp")
    with Image.open(tmp_path / "a.webp") as film:
        assert (film.n_frames, film.size) == (1, (48, 32))
