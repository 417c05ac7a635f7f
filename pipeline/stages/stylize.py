"""Stage ``stylize``: one experiment of params.yaml → a folder with its picture and its record.

Read ``_run`` first, then ``search.Search``: they are the run from top to bottom.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from pipeline import paths
from pipeline.config.params import find_experiment, read_params
from pipeline.config.plan import as_planned
from pipeline.config.schema import Experiment, Params
from pipeline.errors import UserError, explaining_the_disk
from pipeline.files import write_json
from pipeline.imaging.picture_files import read_picture, write_png
from pipeline.imaging.tensors import to_picture, to_tensor
from pipeline.losses.objective import Objective
from pipeline.records.checkpoints import sole_run
from pipeline.records.identity import Run, identify
from pipeline.records.provenance import code_version, settings_text
from pipeline.records.status import record_run, recording_failure
from pipeline.records.tracking import logged_picture, tracked_run, whereabouts
from pipeline.stages import run_stage
from pipeline.transfer.build import read_inputs
from pipeline.transfer.memory import check_memory
from pipeline.transfer.phases import Found, Search


def stylize(name: str, params: Params) -> None:
    """Runs the experiment ``name`` and writes its outputs into ``data/experiments/NAME``.

    Where a checkpoint of the same run lies, it goes on from there.

    Raises:
        UserError: no such experiment, another process at it, inputs that do not fit, or an image
            that did not move.
        SystemExit: 143 after SIGTERM, 130 after an interrupt: what a killed process answers.
    """
    settings = find_experiment(params, name)
    with sole_run(name), recording_failure(name), explaining_the_disk():
        # An earlier result is not that of this run, should it end early.
        (paths.EXPERIMENTS / name / "image.png").unlink(missing_ok=True)
        _run(name, settings, params)


def _run(name: str, settings: Experiment, params: Params) -> None:
    if settings.deterministic:
        # cuBLAS reads this when it is first used, which is before Lightning would set it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    run = identify(name, settings)
    check_memory(settings, run.device, run.precision)
    inputs = read_inputs(settings)
    run.checkpoints.forget_others()
    every = params.checkpoints.every
    with tracked_run(
        params.tracking,
        root=paths.shared_root(),
        name=name,
        job_type="stylize",
        config={"experiment": name, **run.description},
        group=params.figure_of(name),
    ) as record:
        found = Search(run, inputs, WandbLogger(experiment=record), every).run()
        metrics = _write_results(run, found, inputs.start)
        image = paths.EXPERIMENTS / name / "image.png"
        picture = read_picture(image)
        ended = {"end": found.end.kind, "result": logged_picture(picture, name)}
        record.summary.update({**metrics, **ended})
        record_run(image, whereabouts(record, paths.shared_root()))
    run.checkpoints.remove()


def _write_results(run: Run, found: Found, start: Tensor) -> dict[str, float]:
    module, objective, name = found.module, found.objective, run.name
    folder = paths.EXPERIMENTS / name
    picture = to_picture(module.image)
    text = settings_text(name, run.description["settings"], run.description["inputs"])
    write_png(picture, folder / "image.png", text)
    saved = to_tensor(picture).to(module.device)
    metrics = {
        **found.counts,
        **_losses(objective, module.image, ""),
        **_losses(objective, saved, "saved_"),
    }
    if found.counts["earlier_evaluations"]:  # else the history begins with them
        metrics |= _losses(objective, start.to(module.device), "start_")
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "status.json", {**found.end._asdict(), "notes": found.notes})
    provenance = {
        "experiment": name,
        "code": code_version(),
        **run.description,
        **run.made_by,
    }
    write_json(folder / "provenance.json", provenance)
    print(f"{name}: total loss {metrics['total']:.4g}, as saved {metrics['saved_total']:.4g}")
    if found.end.kind != "budget":
        print(f"{name}: ended by {found.end.kind}: {found.end.reason}")
    return metrics


def _losses(objective: Objective, image: Tensor, prefix: str) -> dict[str, float]:
    """Returns the losses of an image, without the weighted parts of each layer."""
    with torch.no_grad():
        losses = objective(image)
    return {
        f"{prefix}{name}": float(f"{loss.item():.9g}")
        for name, loss in losses.items()
        if not name.endswith("_weighted")
    }


def _only(names: Sequence[str]) -> str:
    if len(names) != 1:
        raise UserError(f"{len(names)} names were given. Name one experiment of params.yaml")
    return names[0]


def main(arguments: Sequence[str]) -> NoReturn:
    """Runs the stage for the experiment that the arguments name, and exits."""
    run_stage(lambda: stylize(_only(arguments), as_planned(read_params())))


if __name__ == "__main__":
    main(sys.argv[1:])
