"""Training a small network: its data, its loss, resuming, and the files that are written."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_params, write_params
from PIL import Image
from torch import Tensor

from pipeline.config.params import read_params
from pipeline.distillation.module import DistillationModule
from pipeline.distillation.student import SMALL_LAYERS
from pipeline.distillation.training import (
    build_module,
    distil,
    find_pictures,
    read_reduced,
    train,
)
from pipeline.distillation.training_data import (
    CropSampler,
    _minimise,
    optimised_images,
    subsample,
)
from pipeline.errors import UserError
from pipeline.networks.weight_files import EMBEDDED, load_small

TINY = {
    "widths": [2, 3, 4, 4, 4],
    "epochs": 3,
    "images": 4,
    "crop_size": 32,
    "batch_size": 2,
    "passes": 1,
    "plain_epochs": 0,
    "optimised": 0.0,
    "precision": "float32",
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three pictures and a hidden file."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, size in enumerate([(60, 40), (40, 70), (20, 24)]):
        pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / ".hidden").write_text("not a picture")
    return folder


@pytest.fixture
def section(workspace: Path, weights_file: Path, pictures: Path) -> Callable[..., None]:
    """Writes params.yaml with a tiny section ``distillation``, changed as asked."""

    def write(**changes: Any) -> None:
        params: dict[str, Any] = tiny_params(weights_file)
        params["tracking"] = {"mode": "disabled"}
        given = {"weights": str(weights_file), "pictures": [str(pictures)], **TINY, **changes}
        params["distillation"].update(given)
        write_params(workspace, params)

    write()
    return write


def loaded(pictures: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in find_pictures([str(pictures)])]


@pytest.mark.parametrize("augmented", [False, True])
def test_crops_depend_on_the_seed_alone(augmented: bool, pictures: Path) -> None:
    def drawn(seed: int) -> Tensor:
        return CropSampler(loaded(pictures), 32, (seed,)).crops(6, augmented)

    assert drawn(0).shape == (6, 3, 32, 32)
    assert drawn(0).dtype == torch.float32
    assert drawn(0).is_contiguous()
    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


def test_crops_stay_in_range_and_noise_is_around_grey(pictures: Path) -> None:
    sampler = CropSampler(loaded(pictures), 32, (0,))
    assert 0 <= sampler.crops(20).min() < sampler.crops(20).max() <= 1
    noise = sampler.noise()
    assert abs(noise.mean() - 0.5) < 0.05
    assert noise.std() > 0.01


def test_subsampling_picks_some_positions_of_the_large_maps_and_all_of_the_others() -> None:
    maps = torch.arange(64.0).view(1, 1, 8, 8)
    assert subsample(maps, "conv1_2", (1, 6)).flatten().tolist() == [10, 14, 42, 46]
    assert subsample(maps, "conv2_1", (1, 6)).shape == (1, 1, 4, 4)
    assert torch.equal(subsample(maps, "conv3_1", (3, 3)), maps)


@pytest.fixture
def build(
    section: Callable[..., None], pictures: Path, weights_file: Path
) -> Callable[..., DistillationModule]:
    """Builds an untrained module by the tiny section ``distillation``, changed as asked."""

    def build_changed(**changes: Any) -> DistillationModule:
        settings = read_params().distillation
        assert settings is not None
        changed = settings.model_copy(update=changes)
        return build_module(weights_file, loaded(pictures), changed)

    return build_changed


def test_epoch_has_every_image_as_often_as_asked(build: Callable[..., DistillationModule]) -> None:
    module = build(images=5, passes=3, batch_size=2)
    batches = list(module.data.epoch(0, module.student.weights()))
    assert sorted(len(batch.images) for batch in batches) == [1, 1, 1, 2, 2, 2, 2, 2, 2]
    again = list(module.data.epoch(0, module.student.weights()))
    assert all(torch.equal(a.images, b.images) for a, b in zip(batches, again, strict=True))
    other = next(iter(module.data.epoch(1, module.student.weights())))
    assert not any(torch.equal(other.images, batch.images) for batch in batches)


def test_optimised_images_are_used_after_the_plain_epochs(
    build: Callable[..., DistillationModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = build(images=40, optimised=0.5, plain_epochs=1)
    marked = [torch.full((8, 3, 32, 32), 7.0)]
    monkeypatch.setattr("pipeline.distillation.training_data.optimised_images", lambda *_: marked)
    weights = module.student.weights()
    counts = [
        sum(int((batch.images == 7).flatten(1).all(1).sum()) for batch in batches)
        for batches in (module.data.epoch(number, weights) for number in (0, 1))
    ]
    assert counts == [0, 8]


def test_optimised_images_are_those_of_three_moments(
    build: Callable[..., DistillationModule], pictures: Path
) -> None:
    module = build()
    sampler = CropSampler(loaded(pictures), 32, (0,))
    snapshots = optimised_images(module.student.weights(), module.teacher.means, sampler)
    assert [images.shape for images in snapshots] == [(8, 3, 32, 32)] * 3
    assert all(images.isfinite().all() for images in snapshots)
    assert not torch.equal(snapshots[0], snapshots[-1])


def test_optimised_images_approach_the_minimum() -> None:
    target = torch.full((8, 3, 4, 6), 0.7)

    def loss(images: Tensor) -> Tensor:
        return (images - target).square().sum()

    start = torch.full_like(target, 0.2)
    losses = [float(loss(images)) for images in _minimise(loss, start, steps=20)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-6 * float(loss(start))


def test_residual_of_a_perfect_student_is_0_and_of_a_silent_one_above_1(
    build: Callable[..., DistillationModule], pictures: Path
) -> None:
    module = build()
    batch = module.data.batch(CropSampler(loaded(pictures), 32, (0,)).crops(2))
    with torch.no_grad():
        for head in module.student.heads.values():
            head.zero_()
        silent = module.residuals(batch)
        predictions = {}
        for name, features in module.student(batch.images):
            module.student.heads[name].fill_(1.0)
            filters = len(module.student.heads[name])
            sampled = subsample(features, name, batch.offset)
            predictions[name] = sampled.sum(1, keepdim=True).expand(-1, filters, -1, -1)
    assert all(plain > 1 for plain, _ in silent.values())
    perfect = module.residuals(batch._replace(targets=predictions))
    assert all(max(pair) < 1e-8 for pair in perfect.values())


def test_training_lowers_the_loss(build: Callable[..., DistillationModule], tmp_path: Path) -> None:
    module = build(epochs=30, widths=[8, 8, 8, 8, 8])
    rows = list(csv.DictReader(train(module, tmp_path / "checkpoints", None).splitlines()))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 31))
    first, last = (float(rows[index]["loss"]) for index in (0, -1))
    assert last < 0.85 * first
    assert {f"residual_{name}" for name in SMALL_LAYERS} < set(rows[0])


@pytest.mark.parametrize("damaged", [False, True])
def test_interrupted_training_ends_as_an_uninterrupted_one(
    damaged: bool,
    build: Callable[..., DistillationModule],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = {"epochs": 4, "optimised": 0.5, "plain_epochs": 2}
    whole = build(**changes)
    curve = train(whole, tmp_path / "whole", None)

    class KilledError(Exception):
        pass

    interrupted = build(**changes)
    epoch = interrupted.data.epoch

    def epoch_until_the_last(number: int, weights: Any) -> Any:
        if number == 3:
            raise KilledError
        return epoch(number, weights)

    monkeypatch.setattr(interrupted.data, "epoch", epoch_until_the_last)
    with pytest.raises(KilledError):
        train(interrupted, tmp_path / "interrupted", None)
    last = tmp_path / "interrupted/last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= damaged
    last.write_bytes(content)
    resumed = build(**changes)
    assert train(resumed, tmp_path / "interrupted", None) == curve
    assert (f"{last} is damaged" in capsys.readouterr().out) == damaged
    for name, tensor in whole.student.weights().items():
        assert torch.equal(tensor, resumed.student.weights()[name]), name


def test_stage_writes_a_network_its_record_and_its_curve(
    section: Callable[..., None], workspace: Path
) -> None:
    output = workspace / "mine" / "small.safetensors"
    distil(read_params(), output)
    assert load_small(output)["conv1_1.weight"].shape == (2, 3, 3, 3)
    record = json.loads(output.with_suffix(".json").read_text())
    assert record["settings"]["widths"] == TINY["widths"]
    assert record["pictures"]["count"] == 3
    assert set(record["residuals"]) == set(SMALL_LAYERS)
    assert len(output.with_suffix(".csv").read_text().splitlines()) == 1 + 3
    assert not list((workspace / "data/distillation").iterdir())
    before = output.read_bytes()
    distil(read_params(), output)
    assert output.read_bytes() == before


def test_training_is_run_by_one_process(
    section: Callable[..., None], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = workspace / "small.safetensors"
    monkeypatch.setattr(
        "pipeline.distillation.training.train", lambda *_: distil(read_params(), output)
    )
    with pytest.raises(UserError, match=f"this training is being run by process {os.getpid()}"):
        distil(read_params(), output)


def test_missing_section_and_missing_pictures_are_named(
    section: Callable[..., None], workspace: Path, weights_file: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    section(pictures=[str(empty)])
    with pytest.raises(UserError, match=r"has 0 picture\(s\); some hundred pictures are needed"):
        distil(read_params(), EMBEDDED)
    section(pictures=["data/training"])
    with pytest.raises(UserError, match=r"no folder data/training; some hundred pictures"):
        distil(read_params(), EMBEDDED)
    params: dict[str, Any] = tiny_params(weights_file)
    del params["distillation"]
    write_params(workspace, params)
    with pytest.raises(UserError, match=r"has no section distillation\. Add it"):
        distil(read_params(), EMBEDDED)


def test_training_that_diverges_names_the_remedy_and_writes_no_network(
    section: Callable[..., None], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.distillation.module.VARIANCE_FLOOR", float("nan"))
    output = workspace / "small.safetensors"
    with pytest.raises(
        UserError, match=r"loss is nan in epoch 1: .* Lower distillation\.learning_rate"
    ):
        distil(read_params(), output)
    assert not output.exists()
    assert not list(workspace.rglob("last.ckpt"))


def test_output_must_be_a_safetensors_file(section: Callable[..., None]) -> None:
    with pytest.raises(UserError, match=r"written as \.safetensors, not as mine\.json"):
        distil(read_params(), Path("mine.json"))


def test_layer_without_weight_is_refused(section: Callable[..., None]) -> None:
    section(layers={"conv1_1": 1.0})
    with pytest.raises(UserError, match="conv1_2 has no weight above 0"):
        read_params()


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    for size, expected in (((1000, 600), (400, 240)), ((40, 30), (40, 30))):
        Image.new("RGB", size).save(tmp_path / "picture.png")
        assert read_reduced(tmp_path / "picture.png").size == expected
