"""Stage ``stylize``: one experiment of params.yaml → a folder with its picture and its record.

Read ``_run`` first: it is the run from top to bottom.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from pipeline import paths
from pipeline.errors import UserError, command_line, nearest
from pipeline.files import sha256, write_json
from pipeline.frozen import FrozenFeatures
from pipeline.images import resize, scaled_size, to_picture, to_tensor, white_noise
from pipeline.module import StyleTransfer
from pipeline.objective import Objective
from pipeline.params import read_params
from pipeline.pictures import read_picture, write_png
from pipeline.provenance import code_version, package_versions, settings_text
from pipeline.schema import Experiment, Params
from pipeline.status import record_run, recording_failure
from pipeline.tracking import logged_picture, tracked_run, whereabouts
from pipeline.training import fit
from pipeline.weights import check_backbone, load_backbone


class Inputs(NamedTuple):
    """The pictures of a run as tensors: (1, 3, H, W) float32, RGB in [0, 1]."""

    content_image: Tensor
    style_image: Tensor
    start: Tensor


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
    device = _device(settings)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    inputs = read_inputs(name, settings)
    folder = paths.EXPERIMENTS / name
    image = folder / "image.png"
    description = describe(name, settings)
    with tracked_run(
        params.tracking,
        root=paths.shared_root(),
        name=name,
        job_type="stylize",
        config={"experiment": name, **description},
        group=params.figure_of(name),
    ) as run:
        watched: dict[str, Any] = {
            "folder": folder,
            "intermediates": settings.intermediates,
            "logger": WandbLogger(experiment=run),
            "deterministic": settings.deterministic,
        }
        start, warm = inputs.start, 0
        if settings.warm_start:
            module = _module(settings, paths.EMBEDDED_FILE, inputs, start, device)
            warm = settings.warm_evaluations
            fit(module, name=f"{name}, warm start", evaluations=warm, stage="warm_start", **watched)
            start, warm = module.image.detach(), module.evaluations
        module = _module(settings, paths.WEIGHTS_FILE, inputs, start, device)
        trainer = fit(module, name=name, evaluations=settings.evaluations, before=warm, **watched)
        _refuse_unmoved(module, start)
        counts = {
            "warm_evaluations": warm,
            "evaluations": module.evaluations,
            "iterations": trainer.global_step,
        }
        metrics = _write_results(name, module, folder, description, counts)
        picture = read_picture(image)
        run.summary.update({**metrics, "result": logged_picture(picture, name)})
        record_run(image, whereabouts(run, paths.shared_root()))


def read_inputs(name: str, settings: Experiment) -> Inputs:
    """Returns the pictures of an experiment, resized as it asks, and the image to start from."""
    content_image = to_tensor(read_picture(paths.picture(name, "content")))
    style_image = to_tensor(read_picture(paths.picture(name, "style")))
    size = scaled_size(_size(content_image), settings.size_edge, settings.size)
    style_size = size
    if settings.style_resize == "own":
        style_size = scaled_size(_size(style_image), settings.size_edge, settings.size)
    how = settings.resampling, settings.antialias
    content = resize(content_image, size, *how)
    style = resize(style_image, style_size, *how)
    if settings.init == "content":
        return Inputs(content, style, content)
    if settings.init == "style":
        return Inputs(content, style, resize(style, size, *how))
    return Inputs(content, style, white_noise(size, settings.seed, settings.noise_level))


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


def _device(settings: Experiment) -> torch.device:
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=settings.device).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device is {settings.device!r}, but torch finds none here. Use 'auto' or 'cpu'"
        ) from error


def _size(image: Tensor) -> tuple[int, int]:
    height, width = image.shape[-2:]
    return height, width


def _module(
    settings: Experiment, network: Path, inputs: Inputs, start: Tensor, device: torch.device
) -> StyleTransfer:
    """Returns the problem that a prepared network poses, from a start; targets on the device."""
    objective = Objective(
        FrozenFeatures(*load_backbone(network)).to(device),
        inputs.content_image.to(device),
        inputs.style_image.to(device),
        content_layers=settings.content_layers,
        style_layers=settings.style_layers,
        content_weight=settings.content_weight,
        style_weight=settings.style_weight,
        variation_weight=settings.variation_weight,
        convention=settings.convention,
    )
    return StyleTransfer(
        objective,
        start,
        lbfgs=settings.lbfgs.model_dump(),
        first_step=settings.first_step,
        largest_step=settings.largest_step,
    )


def _refuse_unmoved(module: StyleTransfer, start: Tensor) -> None:
    if torch.equal(to_tensor(to_picture(module.image)), to_tensor(to_picture(start))):
        raise UserError(
            "the image did not move: every pixel has its value of the start. Give it more "
            "evaluations, a larger first_step, or weights that are not 0"
        )


def _write_results(
    name: str,
    module: StyleTransfer,
    folder: Path,
    description: dict[str, Any],
    counts: dict[str, int],
) -> dict[str, float]:
    picture = to_picture(module.image)
    text = settings_text(name, description["settings"], description["inputs"])
    write_png(picture, folder / "image.png", text)
    saved = to_tensor(picture).to(module.device)
    metrics = {
        **counts,
        **_losses(module.objective, module.image, ""),
        **_losses(module.objective, saved, "saved_"),
    }
    write_json(folder / "metrics.json", metrics)
    provenance = {
        "experiment": name,
        "code": code_version(),
        **description,
        "packages": package_versions(),
        "device": _device_name(module.device),
        "threads": torch.get_num_threads(),
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


if __name__ == "__main__":
    command_line(lambda: stylize(sys.argv[1], read_params()))
