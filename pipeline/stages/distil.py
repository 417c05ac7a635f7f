"""Stage ``distil``: VGG-19 and a heap of pictures → a small network that stands in for it.

Writes ``pipeline/embedded``, or the path it is given. Frozen in dvc.yaml: `dvc repro` must not
begin an hour's work by itself. A run that was stopped goes on from the last epoch it finished.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, WandbLogger
from PIL import Image
from torch import Tensor

from pipeline import paths
from pipeline.config.params import read_params
from pipeline.config.schema import Distillation, Params
from pipeline.distillation.crops import Crops
from pipeline.distillation.lessons import Lessons
from pipeline.distillation.module import Teaching
from pipeline.distillation.student import SMALL_LAYERS, Student
from pipeline.errors import UserError, command_line
from pipeline.files import sha256, write_json, write_text
from pipeline.imaging.picture_files import read_picture
from pipeline.imaging.sources import WEIGHTS, locate
from pipeline.networks.rescaling import rescaling_means
from pipeline.networks.vgg import Features
from pipeline.networks.weight_files import EMBEDDED, imagenet_weights, load_weights, save_small
from pipeline.records.provenance import code_version, package_versions
from pipeline.records.tracking import tracked_run
from pipeline.runtime.trainer import run

HELD_OUT = 20
"""One picture in so many is not learned from; the residuals of the record are measured on them."""
LONG_EDGE = 400
"""Larger pictures are reduced to this, in pixels: a crop should show more than a patch of sky."""
SAMPLE = 64
"""Crops over which the layers' units and the filters' means are taken, and the residuals."""


def distil(params: Params, output: Path = EMBEDDED) -> None:
    """Teaches a small network; writes its weights, a record of how, and the curve of its lessons.

    Args:
        params: of which the sections ``distillation`` and ``tracking`` are read.
        output: the .safetensors file; record and curve lie beside it, as .json and .csv.

    Raises:
        UserError: no section ``distillation``, or a teacher or pictures that cannot be read.
    """
    if params.distillation is None:
        raise UserError("params.yaml has no section distillation. Add it")
    if output.suffix != ".safetensors":
        raise UserError(f"the network is written as .safetensors, not as {output}")
    settings = params.distillation
    # cuBLAS reads this when it is first used, which is before Lightning would set it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    files = picture_files(settings.pictures)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher_file = _teacher_file(settings)
    teacher = Features(load_weights(teacher_file, settings.convention), "avg").to(device)
    record: dict[str, Any] = {
        # What lies where on this machine is nobody's business; the hashes say what it was.
        "settings": settings.model_dump(exclude={"weights", "pictures"}),
        "teacher": {"file": teacher_file.name, "sha256": sha256(teacher_file)},
        "pictures": {"count": len(files), "sha256": _digest(map(sha256, files))},
    }
    pictures = [_reduced(read_picture(file)) for file in files]
    learned = [picture for index, picture in enumerate(pictures) if index % HELD_OUT]
    held_out = pictures[::HELD_OUT]
    units, means = scales(teacher, Crops(learned, settings.crop_size, (settings.seed, 0, 0)))
    lessons = Lessons(in_precision(teacher, settings.precision), units, means, learned, settings)
    module = Teaching(Student(settings.widths, units, settings.seed), lessons, settings).to(device)
    folder = paths.shared_root() / "data" / "distillation" / _digest([json.dumps(record)])[:16]
    with tracked_run(
        params.tracking,
        root=paths.shared_root(),
        name="distil",
        job_type="distil",
        config=record,
        against="epoch",
    ) as tracked:
        history = teach(module, folder, WandbLogger(experiment=tracked))
        record["residuals"] = residuals(
            module.to(device), Crops(held_out, settings.crop_size, (settings.seed, 0, 1))
        )
        tracked.summary.update({"residuals": record["residuals"]})
    record |= {"code": code_version(), "packages": package_versions(), "device": device.type}
    _write(output, module.student.weights(), record, history)
    shutil.rmtree(folder)


def picture_files(sources: Iterable[str]) -> list[Path]:
    """Returns the files that sources stand for, each once, those of a folder in order of name.

    Args:
        sources: folders, of which every file is taken that is not hidden and none of their
            folders, or what ``locate`` takes.

    Raises:
        UserError: fewer than two files, or a source that is not there.
    """
    files: list[Path] = []
    for source in sources:
        folder = Path(source).expanduser()
        if folder.is_dir():
            inside = [path for path in folder.iterdir() if path.is_file()]
            files += sorted(path for path in inside if not path.name.startswith("."))
        elif folder.suffix or ":" in source:
            files.append(locate(source, None, paths.downloads()))
        else:
            raise UserError(
                f"distillation.pictures: there is no folder {source}. Some hundred pictures are "
                "needed, of all kinds. Make it and put them there, or name the one that has them"
            )
    files = list(dict.fromkeys(files))
    if len(files) < 2:
        raise UserError(
            f"distillation.pictures has {len(files)} picture(s); some hundred are needed, of all "
            "kinds. Name a folder that holds them"
        )
    return files


def _write(output: Path, weights: dict[str, Tensor], record: dict[str, Any], history: str) -> None:
    save_small(output, weights)
    write_json(output.with_suffix(".json"), record)
    write_text(output.with_suffix(".csv"), history)
    print(f"distil: {output}, {output.stat().st_size / 2**20:.2f} MiB")


def _reduced(picture: Image.Image) -> Image.Image:
    picture.thumbnail((LONG_EDGE, LONG_EDGE), Image.Resampling.LANCZOS)
    return picture


def scales(teacher: Features, crops: Crops) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Returns each layer's unit, the standard deviation of VGG-19's activations, and the means
    that the rescaled VGG-19's filters are divided by."""
    images = crops.plain(SAMPLE).to(teacher.get_buffer("mean").device)
    with torch.no_grad():
        units = {name: maps.std().item() for name, maps in teacher(images, SMALL_LAYERS).items()}
    means, _ = rescaling_means(teacher, torch.split(images, 1))
    return units, {name: means[name] for name in SMALL_LAYERS}


def in_precision(teacher: Features, precision: str) -> Features:
    """Returns the teacher, computing in bfloat16 or as it is; laid out as processors like it."""
    if precision == "bf16":
        teacher = teacher.bfloat16()
    return teacher.to(memory_format=torch.channels_last)


def teach(module: Teaching, folder: Path, logger: Logger | None) -> str:
    """Trains, from the checkpoint in ``folder`` if there is one; returns the curve as CSV.

    A row for each epoch: its number from 1, the loss and each layer's residual, filters as they
    are.
    """
    checkpoint = ModelCheckpoint(
        folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    curve = _Curve()
    last = folder / "last.ckpt"
    run(
        module,
        module.device,
        resume_from=last if last.is_file() else None,
        max_epochs=module.settings.epochs,
        callbacks=[checkpoint, curve],
        logger=logger or False,
        deterministic=True,
    )
    return curve.text()


def residuals(module: Teaching, crops: Crops) -> dict[str, float]:
    """Returns the share of VGG-19's variance that each layer misses, filters as they are."""
    batches = torch.split(crops.plain(SAMPLE), module.settings.batch_size)
    sums = dict.fromkeys(SMALL_LAYERS, 0.0)
    with torch.no_grad():
        for batch in batches:
            found = module.residuals(module.lessons.lesson(batch, (0, 0)))
            for name, (raw, _) in found.items():
                sums[name] += raw.item() * len(batch)
    return {name: round(total / SAMPLE, 4) for name, total in sums.items()}


class _Curve(pl.Callback):
    """Keeps and prints the means of each epoch; a checkpoint keeps them too."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        means = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not all(map(math.isfinite, means.values())):  # before the checkpoint is written
            raise UserError(
                f"the loss is {means['loss']} in epoch {trainer.current_epoch + 1}: the lessons "
                "diverged. Lower distillation.learning_rate. The epoch before is kept"
            )
        self.rows.append({"epoch": trainer.current_epoch + 1, **means})
        layers = " ".join(f"{means[f'residual_{name}']:.3f}" for name in SMALL_LAYERS)
        print(f"epoch {trainer.current_epoch + 1}: {layers}", flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def text(self) -> str:
        table = io.StringIO()
        writer = csv.DictWriter(table, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in self.rows)
        return table.getvalue()


def _teacher_file(settings: Distillation) -> Path:
    if settings.weights == "imagenet":
        return imagenet_weights()
    return locate(settings.weights, None, paths.downloads(), WEIGHTS)


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


if __name__ == "__main__":
    command_line(lambda: distil(read_params(), *map(Path, sys.argv[1:2])))
