"""Trains the small network that stands in for VGG-19, and writes it with a record of how."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from PIL import Image

from pipeline import paths
from pipeline.config.schema import Distillation, Params
from pipeline.distillation.module import DistillationModule, EpochLoader
from pipeline.distillation.student import Student
from pipeline.distillation.training_data import CropSampler, Teacher, TrainingData
from pipeline.errors import UserError
from pipeline.files import sha256, write_json, write_text
from pipeline.imaging.downloads import locate
from pipeline.imaging.picture_files import read_picture
from pipeline.networks.prepare import published_weights
from pipeline.networks.weight_files import load_weights, save_small
from pipeline.records.checkpoints import read_checked, write_checked
from pipeline.records.locks import sole
from pipeline.records.provenance import code_version, package_versions
from pipeline.records.tracking import tracked_run
from pipeline.runtime.trainer import run

HELD_OUT = 20
"""One picture in so many is not trained on, but used to measure the recorded residuals."""
LONG_EDGE = 400
"""Pixels to which larger pictures are reduced, so that a crop shows more than a patch of sky."""
SAMPLE = 64
"""Number of crops on which the teacher's scale is measured, and the recorded residuals."""
GIVE_PICTURES = "some hundred pictures are needed, of all kinds. Name a folder that holds them"


def distil(params: Params, output: Path) -> None:
    """Trains a small network by the section ``distillation`` of params.yaml.

    Writes its weights to ``output``, a .safetensors file, and beside it a record of the training as
    .json and its loss curve as .csv. An interrupted training resumes after its last whole epoch.

    Raises:
        UserError: no section ``distillation``, unreadable inputs, or training that diverged.
    """
    if params.distillation is None:
        raise UserError("params.yaml has no section distillation. Add it")
    if output.suffix != ".safetensors":
        raise UserError(f"the network is written as .safetensors, not as {output}")
    settings, root = params.distillation, paths.shared_root()
    # cuBLAS reads this when it is first used, which is before Lightning would set it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    files = find_pictures(settings.pictures)
    teacher_file = published_weights(settings.weights)
    record: dict[str, Any] = {
        # Not the paths, which are those of this machine; the hashes identify the files.
        "settings": settings.model_dump(exclude={"weights", "pictures"}),
        "teacher": {"file": teacher_file.name, "sha256": sha256(teacher_file)},
        "pictures": {"count": len(files), "sha256": _sha256_of_texts(map(sha256, files))},
    }
    checkpoints = root / "data" / "distillation" / _sha256_of_texts([json.dumps(record)])[:16]
    pictures = [read_reduced(file) for file in files]
    training = [picture for index, picture in enumerate(pictures) if index % HELD_OUT]
    module = build_module(teacher_file, training, settings)
    names = {"name": "distil", "job_type": "distil", "against": "epoch"}
    with (
        sole(checkpoints / "lock", "this training"),
        tracked_run(params.tracking, root=root, config=record, **names) as tracked,
    ):
        curve = train(module, checkpoints, WandbLogger(experiment=tracked))
        held_out = CropSampler(pictures[::HELD_OUT], settings.crop_size, (settings.seed, 0, 1))
        record["residuals"] = mean_residuals(module, held_out)
        tracked.summary.update({**module.curve[-1], "residuals": record["residuals"]})
    save_small(output, module.student.weights())
    record |= {"code": code_version(), "packages": package_versions()}
    write_json(output.with_suffix(".json"), record | {"device": module.device.type})
    write_text(output.with_suffix(".csv"), curve)
    print(f"distil: {output}, {output.stat().st_size / 2**20:.2f} MiB")
    shutil.rmtree(checkpoints)


def find_pictures(sources: Iterable[str]) -> list[Path]:
    """Returns the picture files of the given sources, each once.

    A source is anything that ``locate`` takes, or a folder: all its files, sorted by name, except
    hidden ones and those in folders inside.

    Raises:
        UserError: fewer than two files, or a source that does not exist.
    """
    files: list[Path] = []
    for source in sources:
        folder = Path(source).expanduser()
        if folder.is_dir():
            files += sorted(path for path in folder.glob("[!.]*") if path.is_file())
        elif folder.suffix or ":" in source:
            files.append(locate(source, None, paths.downloads()))
        else:
            raise UserError(f"distillation.pictures: no folder {source}; {GIVE_PICTURES}")
    files = list(dict.fromkeys(files))
    if len(files) < 2:
        raise UserError(f"distillation.pictures has {len(files)} picture(s); {GIVE_PICTURES}")
    return files


def read_reduced(file: Path) -> Image.Image:
    """Returns a picture, reduced to a long edge of ``LONG_EDGE`` if it is larger."""
    picture = read_picture(file)
    picture.thumbnail((LONG_EDGE, LONG_EDGE), Image.Resampling.LANCZOS)
    return picture


def build_module(
    teacher_file: Path, pictures: Sequence[Image.Image], settings: Distillation
) -> DistillationModule:
    """Returns an untrained student with its teacher and training data, on the fastest device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sample = CropSampler(pictures, settings.crop_size, (settings.seed, 0, 0)).crops(SAMPLE)
    weights = load_weights(teacher_file, settings.convention)
    teacher = Teacher(weights, sample.to(device), settings.precision)
    student = Student(settings.widths, teacher.deviations, settings.seed)
    return DistillationModule(student, TrainingData(teacher, pictures, settings)).to(device)


def train(module: DistillationModule, folder: Path, logger: Logger | None) -> str:
    """Trains the student, from the checkpoint in ``folder`` if there is one.

    Returns the curve as CSV; a row is an epoch's number from 1, its loss and residuals.
    """
    last = folder / "last.ckpt"
    try:
        read_checked(last)
    except FileNotFoundError:
        pass
    except Exception as error:  # noqa: BLE001 - damaged bytes raise any of them
        print(f"{last} is damaged ({error}): the training begins anew")
        last.unlink()
    checkpoint = ModelCheckpoint(
        folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    run(
        module,
        module.device,
        data=EpochLoader(module),
        resume_from=last if last.is_file() else None,
        max_epochs=module.settings.epochs,
        callbacks=[checkpoint],
        plugins=[_CheckedIO()],
        logger=logger or False,
        deterministic=True,
    )
    rows = [[f"{value:.6g}" for value in row.values()] for row in module.curve]
    return "".join(",".join(row) + "\n" for row in [list(module.curve[0]), *rows])


class _CheckedIO(TorchCheckpointIO):
    """Writes and reads Lightning's checkpoints with a hash of their content."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, *_: Any, **__: Any) -> None:
        write_checked(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        content: dict[str, Any] = read_checked(Path(path))
        return content


@torch.no_grad()
def mean_residuals(module: DistillationModule, sampler: CropSampler) -> dict[str, float]:
    """Returns each layer's fraction of variance unexplained on new crops, filters not rescaled."""
    batch = module.data.batch(sampler.crops(SAMPLE).to(module.device))
    return {name: round(plain.item(), 4) for name, (plain, _) in module.residuals(batch).items()}


def _sha256_of_texts(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
