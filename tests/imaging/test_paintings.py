"""The project's own paintings are those that their script draws."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY

from pipeline.config.params import read_params
from pipeline.files import sha256
from pipeline.imaging.picture_files import read_picture

FOLDER = REPOSITORY / "data" / "paintings"
NAMES = ["brushwork", "dots", "glass", "hatching"]


def script() -> Any:
    spec = importlib.util.spec_from_file_location("draw", FOLDER / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_painting_is_small_and_in_the_catalogue_with_its_hash() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.jpg")) == NAMES == sorted(script().PAINTINGS)
    images = read_params(REPOSITORY / "params.yaml").images
    for name in NAMES:
        file = FOLDER / f"{name}.jpg"
        assert file.stat().st_size <= 300_000
        assert max(read_picture(file).size) == 768
        assert images[name].source == f"data/paintings/{name}.jpg"
        assert images[name].hash == f"sha256:{sha256(file)}"


@pytest.mark.parametrize("name", NAMES)
def test_script_draws_the_painting(name: str) -> None:
    drawn, kept = script().PAINTINGS[name](), read_picture(FOLDER / f"{name}.jpg")
    # Reduced, since JPEG has coarser colours; another picture is at 50.
    one, other = (np.asarray(picture.reduce(4), np.float64) for picture in (drawn, kept))
    assert np.abs(one - other).mean() < 6
