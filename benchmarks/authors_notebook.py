"""Runs the experiment of the authors' notebook and prints its losses beside theirs.

    python -m benchmarks.authors_notebook --help

Works in ``benchmarks/runs/authors-notebook``, apart from the pipeline's own data.
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path

import yaml

from pipeline import paths
from pipeline.config.params import read_params
from pipeline.config.plan import write_plans
from pipeline.errors import UserError, command_line
from pipeline.networks.prepare import prepare
from pipeline.stages.fetch import fetch
from pipeline.stages.stylize import stylize

HERE = Path(__file__).resolve().parent
NAME = "authors-notebook"

PRINTED = {
    50: 1388532.5,
    100: 707860.8,
    150: 538045.4,
    200: 469374.9,
    250: 433804.6,
    300: 411657.6,
    350: 395248.3,
    400: 383885.3,
    450: 375128.8,
    500: 368493.8,
}
"""Total loss under each label of the notebook. A label is the count of evaluations plus one."""


def main() -> None:
    arguments = _arguments()
    params = yaml.safe_load((HERE / f"{NAME}.yaml").read_text(encoding="utf-8"))
    params["backbone"]["weights"] = _absolute(arguments.weights) or "imagenet"
    params["defaults"]["evaluations"] = arguments.evaluations
    for image in params["images"]:
        if path := _absolute(getattr(arguments, image)):
            params["images"][image]["source"] = path
    folder = HERE / "runs" / NAME
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    checked = read_params()
    fetch(checked)
    write_plans(checked)
    prepare(checked.backbone)
    stylize(NAME)
    print(comparison(paths.EXPERIMENTS / NAME / "history.csv"))


def comparison(history: Path) -> str:
    """Returns the table of the notebook's losses and ours, one line for each label reached.

    Raises:
        UserError: the run was shorter than the first label.
    """
    with history.open(encoding="utf-8") as file:
        ours = {int(row["evaluation"]) + 1: float(row["total"]) for row in csv.DictReader(file)}
    reached = [label for label in PRINTED if label in ours]
    if not reached:
        raise UserError(f"{len(ours)} evaluations were run; the first label needs {min(PRINTED)}")
    lines = ["| label | notebook | ours | ours / notebook |", "|---:|---:|---:|---:|"]
    for label in reached:
        theirs = PRINTED[label]
        lines.append(f"| {label} | {theirs:.1f} | {ours[label]:.1f} | {ours[label] / theirs:.3f} |")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", help="a file of VGG-19's weights (default: torchvision's)")
    parser.add_argument("--neckarfront", help="the notebook's photograph (default: downloaded)")
    parser.add_argument("--starry-night", help="the notebook's painting (default: downloaded)")
    parser.add_argument("--evaluations", type=int, default=500)
    return parser.parse_args()


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().resolve())


if __name__ == "__main__":
    command_line(main)
