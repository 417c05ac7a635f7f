"""Stage ``stylize``: one experiment of params.yaml → a folder with its picture and its record.

Read ``_run`` first, then ``_search``: they are the run from top to bottom.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from pipeline import paths
from pipeline.errors import UserError, command_line, nearest
from pipeline.files import sha256, write_json
from pipeline.frozen import Precision
from pipeline.images import to_picture, to_tensor
from pipeline.module import StyleTransfer
from pipeline.objective import Objective
from pipeline.params import read_params
from pipeline.pictures import read_picture, write_png
from pipeline.problem import (
    Inputs,
    build_module,
    build_objective,
    find_device,
    find_precision,
    read_inputs,
)
from pipeline.provenance import code_version, package_versions, settings_text
from pipeline.schema import Experiment, Params
from pipeline.status import record_run, recording_failure
from pipeline.tracking import logged_picture, tracked_run, whereabouts
from pipeline.training import fit
from pipeline.weights import check_backbone

if TYPE_CHECKING:
    from wandb import Run


class Stage(NamedTuple):
    """A part of a run: its name in the history, its network's file, its evaluations."""

    name: str
    network: Path
    evaluations: int


class Found(NamedTuple):
    """What a run came to.

    Attributes:
        module: with the image.
        objective: in float32, to judge it by.
        counts: of evaluations and iterations.
    """

    module: StyleTransfer
    objective: Objective
    counts: dict[str, int]


def stylize(name: str, params: Params) -> None:
    """Runs the experiment ``name`` and writes its outputs into ``data/experiments/NAME``.

    Raises:
        UserError: no such experiment, inputs that do not fit, or a run that diverged.
        SystemExit: 143 after SIGTERM, 130 after an interrupt: what a killed process answers.
    """
    settings = _settings(name, params)
    # An earlier result is not that of this run, should it end early.
    (paths.EXPERIMENTS / name / "image.png").unlink(missing_ok=True)
    with recording_failure(name):
        _run(name, settings, params)


def _run(name: str, settings: Experiment, params: Params) -> None:
    if settings.deterministic:
        # cuBLAS reads this when it is first used, which is before Lightning would set it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = find_device(settings)
    precision = find_precision(settings, device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    inputs = read_inputs(name, settings)
    description = describe(name, settings)
    with tracked_run(
        params.tracking,
        root=paths.shared_root(),
        name=name,
        job_type="stylize",
        config={"experiment": name, **description},
        group=params.figure_of(name),
    ) as run:
        found = _search(name, settings, inputs, device, precision, run)
        metrics = _write_results(name, found, description, precision)
        image = paths.EXPERIMENTS / name / "image.png"
        picture = read_picture(image)
        run.summary.update({**metrics, "result": logged_picture(picture, name)})
        record_run(image, whereabouts(run, paths.shared_root()))


def _stages(settings: Experiment) -> list[Stage]:
    stages = [Stage("main", paths.WEIGHTS_FILE, settings.evaluations)]
    if settings.warm_start:
        stages.insert(0, Stage("warm_start", paths.EMBEDDED_FILE, settings.warm_evaluations))
    return stages


def _search(
    name: str,
    settings: Experiment,
    inputs: Inputs,
    device: torch.device,
    precision: Precision,
    run: Run,
) -> Found:
    """Optimises the image through all stages of the run."""
    start, before = inputs.start, 0
    for stage in _stages(settings):
        build = partial(build_objective, settings, stage.network, inputs, device)
        exact: Callable[[], Objective] = cache(lambda build=build: build("float32"))
        objective = exact() if precision == "float32" else build(precision)
        module = build_module(objective, settings, start)
        fit(
            module,
            name=name if stage.name == "main" else f"{name}, {stage.name}",
            folder=paths.EXPERIMENTS / name,
            evaluations=stage.evaluations,
            exact=exact,
            intermediates=settings.intermediates,
            logger=WandbLogger(experiment=run),
            deterministic=settings.deterministic,
            stage=stage.name,
            before=before,
        )
        _refuse_unmoved(module, start)
        start = module.image.detach()
        warm, before = before, before + module.evaluations
    counts = {
        "warm_evaluations": warm,
        "evaluations": module.evaluations,
        "float32_evaluations": module.exact_evaluations,
        "iterations": module.iterations,
    }
    return Found(module, exact(), counts)


def describe(name: str, settings: Experiment) -> dict[str, Any]:
    """Returns what defines a run: settings, the network's record, and the hashes of its inputs.

    Raises:
        UserError: the network was not prepared.
    """
    files = {
        "content": paths.picture(name, "content"),
        "style": paths.picture(name, "style"),
        "weights": paths.WEIGHTS_FILE,
    }
    if settings.warm_start:
        files["warm_start_weights"] = paths.EMBEDDED_FILE
    for file in (paths.WEIGHTS_FILE, paths.EMBEDDED_FILE):
        check_backbone(file)
    inputs = {role: sha256(file) for role, file in files.items()}
    return {
        "settings": settings.model_dump(),
        "backbone": json.loads(paths.BACKBONE_RECORD.read_text(encoding="utf-8")),
        "inputs": inputs,
    }


def _settings(name: str, params: Params) -> Experiment:
    if name not in params.experiments:
        known = list(params.experiments)
        hint = nearest(name, known)
        raise UserError(f"no experiment {name!r}{hint} The experiments are {', '.join(known)}")
    return params.experiments[name]


def _refuse_unmoved(module: StyleTransfer, start: Tensor) -> None:
    if torch.equal(to_tensor(to_picture(module.image)), to_tensor(to_picture(start))):
        raise UserError(
            "the image did not move: every pixel has its value of the start. Give it more "
            "evaluations, a larger first_step, or weights that are not 0"
        )


def _write_results(
    name: str, found: Found, description: dict[str, Any], precision: Precision
) -> dict[str, float]:
    module, objective, counts = found
    folder = paths.EXPERIMENTS / name
    picture = to_picture(module.image)
    text = settings_text(name, description["settings"], description["inputs"])
    write_png(picture, folder / "image.png", text)
    saved = to_tensor(picture).to(module.device)
    metrics = {
        **counts,
        **_losses(objective, module.image, ""),
        **_losses(objective, saved, "saved_"),
    }
    write_json(folder / "metrics.json", metrics)
    provenance = {
        "experiment": name,
        "code": code_version(),
        **description,
        "packages": package_versions(),
        "device": _device_name(module.device),
        "threads": torch.get_num_threads(),
        "precision": precision,
    }
    write_json(folder / "provenance.json", provenance)
    print(f"{name}: total loss {metrics['total']:.4g}, as saved {metrics['saved_total']:.4g}")
    return metrics


def _losses(objective: Objective, image: Tensor, prefix: str) -> dict[str, float]:
    """Returns the losses of an image, without the weighted parts of each layer."""
    with torch.no_grad():
        losses = objective.named(objective(image))
    return {
        f"{prefix}{name}": float(f"{loss.item():.9g}")
        for name, loss in losses.items()
        if not name.endswith("_weighted")
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def main(arguments: Sequence[str]) -> NoReturn:
    """Runs the stage for the experiment that the arguments name, and exits."""
    command_line(lambda: stylize(arguments[0], read_params()))


if __name__ == "__main__":
    main(sys.argv[1:])
