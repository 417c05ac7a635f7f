"""What params.yaml came to when a `dvc repro` began: files that its stages depend on.

A run takes long, and params.yaml may be edited meanwhile. What DVC runs does as was planned, which
is what DVC writes down that it did; what is run by hand does as params.yaml says now.
"""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

from pipeline import paths
from pipeline.config.schema import CataloguedImage, Experiment, Params
from pipeline.files import write_json

_IMAGES, _EXPERIMENTS = paths.PLAN / "images.json", paths.PLAN / "experiments"


def write_plan(params: Params) -> None:
    """Writes each experiment's settings, and where the pictures come from that these name."""
    shutil.rmtree(paths.PLAN, ignore_errors=True)
    named = {name for each in params.experiments.values() for name in (each.content, each.style)}
    images = {
        name: params.images[name].model_dump(include={"source", "hash"}) for name in sorted(named)
    }
    write_json(_IMAGES, images)
    for name, settings in params.experiments.items():
        write_json(_EXPERIMENTS / f"{name}.json", settings.model_dump())


def as_planned(params: Params) -> Params:
    """Returns the parameters with the images and experiments of the plan, where DVC asks."""
    if "DVC_STAGE" not in os.environ or not _IMAGES.is_file():
        return params
    images: dict[str, Any] = json.loads(_IMAGES.read_text("utf-8"))
    planned = {
        "images": {name: CataloguedImage(**image) for name, image in images.items()},
        "experiments": {
            file.stem: Experiment(**json.loads(file.read_text("utf-8")))
            for file in sorted(_EXPERIMENTS.glob("*.json"))
        },
    }
    return params.model_copy(update=planned)
