"""Takes the place of ``pipeline.experiments.run`` in tests of what runs, and when.

To import Lightning takes longer than all else that DVC and the runner do with a tiny experiment.
Here a result follows from the plan alone, and is there after ``SECONDS`` for each evaluation.
"""

import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from pipeline import paths
from pipeline.config.plan import Plan
from pipeline.experiments.results import COMPARED
from pipeline.files import own_folder, replacing, sha256, write_json, write_text
from pipeline.records.locks import sole_run
from pipeline.records.status import recording_failure

SECONDS = 0.01
LOSSES = {"total": [9.0, 4.0], "content": [8.0, 3.0], "style": [1.0, 1.0], "edges": [0.0, 0.0]}
PARTS = {"content_conv2_2": [8.0, 3.0], "style_conv1_1": [5.0, 2.0]}


def run_experiment(plan: Plan, *_: object) -> None:
    """Writes results after the time that the evaluations of the plan take."""
    name = plan.experiment
    with sole_run(name), recording_failure(name):
        (paths.EXPERIMENTS / name / "image.png").unlink(missing_ok=True)
        time.sleep(SECONDS * plan.settings.evaluations)
        write_results(name, settings=plan.settings.model_dump(mode="json"))
    print(f"{name}: total loss {LOSSES['total'][-1]}")


def write_results(name: str, **recorded: Any) -> None:
    """Writes the results of an experiment, by its current plan, after two evaluations.

    ``recorded`` goes into provenance.json.
    """
    folder = paths.EXPERIMENTS / name
    own_folder(folder / "intermediates")
    digest = sha256(paths.plan(name))
    for width, file in enumerate(
        ("image", "intermediates/00001", "intermediates/00004"), len(name)
    ):
        _write_picture(folder / f"{file}.png", (8 * width, 16), digest)
    weighted = {f"{part}_weighted": values for part, values in PARTS.items()}
    losses = LOSSES | PARTS | weighted
    lines = [["stage", "evaluation", "iteration", *losses, "gradient_norm"]]
    for evaluation, values in enumerate(zip(*losses.values(), strict=True), 1):
        lines.append(["main", evaluation, evaluation - 1, *values, int(digest[:4], 16)])
    write_text(folder / "history.csv", "".join(",".join(map(str, x)) + "\n" for x in lines))
    results = {loss: values[-1] for loss, values in LOSSES.items()}
    measures = {
        "content_distance": 1 / len(name),
        "style_distance": len(name) / 9,
        "structure": 0.5,
    }
    write_json(folder / "metrics.json", measures | {loss: results[loss] for loss in COMPARED})
    status = {
        "kind": "budget",
        "reason": "all 2 evaluations were used",
        "notes": [],
        "counts": {"earlier_evaluations": 0, "evaluations": 2},
        "losses": results | {f"saved_{loss}": value for loss, value in results.items()},
    }
    write_json(folder / "status.json", status)
    network = {"architecture": "vgg19", "pooling": "avg", "rescale": True, "weights": "w.pth"}
    provenance = {
        "plan": digest,
        "version": "1",
        "backbone": network | {"weights_sha256": 64 * "1"},
        "inputs": {"weights": sha256(paths.WEIGHTS_FILE)},
        "packages": {"torch": "2"},
        "device": "cpu",
        **recorded,
    }
    write_json(folder / "provenance.json", provenance)


def _write_picture(file: Path, size: tuple[int, int], digest: str) -> None:
    """Writes a picture of (width, height) from black to a colour that follows from a hash."""
    colours = Image.linear_gradient("L").resize(size), (0, 0, 0), f"#{digest[:6]}"
    with replacing(file) as temporary:
        ImageOps.colorize(*colours).save(temporary, "PNG")
