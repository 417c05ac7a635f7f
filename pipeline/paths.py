"""The files that the stages of dvc.yaml leave for each other, relative to the workspace."""

import os
from pathlib import Path

IMAGES = Path("data/images")
PLANS = Path("data/plan")
BACKBONE = Path("data/backbone")
EXPERIMENTS = Path("data/experiments")
REMOVED = Path("data/removed")  # results of experiments that params.yaml no longer names
REPORTS = Path("reports")
CELLS = Path("data/cells.yaml")  # names of the cells of all grids, for DVC

# In the folder of an experiment, in the one of its folders that DVC tracks as a whole.
TIMELAPSE = Path("intermediates/timelapse.webp")

# No name of an experiment begins with "_".
BACKBONE_PLAN = PLANS / "_backbone.json"
REPORT_PLAN = PLANS / "_report.json"

WEIGHTS_FILE = BACKBONE / "network.safetensors"
EMBEDDED_FILE = BACKBONE / "embedded.safetensors"
BACKBONE_RECORD = BACKBONE / "backbone.json"

# {picture: what the last fetch knows of it; ``error`` is why it could not be fetched}
FETCH_RECORDS = Path("data/status/_images.json")


def picture(name: str) -> Path:
    """Returns the path of a picture, by its name in the catalogue."""
    return IMAGES / f"{name}.png"


def plan(experiment: str) -> Path:
    """Returns the path of an experiment's plan."""
    return PLANS / f"{experiment}.json"


def shared_root() -> Path:
    """Returns the repository's absolute path, for what DVC does not manage: downloads and W&B."""
    # A queued DVC experiment runs in a copy of the repository and finds the original in DVC_ROOT.
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def downloads() -> Path:
    """Returns the folder that keeps downloaded files, outside DVC's outputs."""
    return shared_root() / "data" / "downloads"
