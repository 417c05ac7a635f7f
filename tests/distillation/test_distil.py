"""Teaching a small network: what it learns from, that it learns, that it goes on where it was."""

from __future__ import annotations

import csv
import json
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
from pipeline.distillation.crops import Crops
from pipeline.distillation.lessons import Lessons, optimised, thinned
from pipeline.distillation.module import Teaching
from pipeline.distillation.student import SMALL_LAYERS, Student
from pipeline.errors import UserError
from pipeline.networks.vgg import Features
from pipeline.networks.weight_files import load_small
from pipeline.stages.distil import _reduced, distil, picture_files, scales, teach

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
    """Writes params.yaml with a tiny section ``distillation``, and what is asked for."""

    def write(**changes: Any) -> None:
        params: dict[str, Any] = tiny_params(weights_file)
        params["tracking"] = {"mode": "disabled"}
        given = {"weights": str(weights_file), "pictures": [str(pictures)], **TINY, **changes}
        params["distillation"].update(given)
        write_params(workspace, params)

    write()
    return write


def loaded(pictures: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in picture_files([str(pictures)])]


@pytest.mark.parametrize("kind", ["plain", "varied"])
def test_crops_are_the_same_for_a_seed_and_others_for_another(kind: str, pictures: Path) -> None:
    def drawn(seed: int) -> Tensor:
        batch: Tensor = getattr(Crops(loaded(pictures), 32, (seed,)), kind)(6)
        return batch

    assert drawn(0).shape == (6, 3, 32, 32)
    assert drawn(0).dtype == torch.float32
    assert drawn(0).is_contiguous()
    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


def test_plain_crops_are_pictures_and_noise_is_around_grey(pictures: Path) -> None:
    crops = Crops(loaded(pictures), 32, (0,))
    assert 0 <= crops.plain(20).min() < crops.plain(20).max() <= 1
    noise = crops.noise()
    assert abs(noise.mean() - 0.5) < 0.05
    assert noise.std() > 0.01


def test_thinning_keeps_every_few_positions_of_the_wide_maps() -> None:
    maps = torch.arange(64.0).view(1, 1, 8, 8)
    assert thinned(maps, "conv1_2", (1, 6)).flatten().tolist() == [10, 14, 42, 46]
    assert thinned(maps, "conv2_1", (1, 6)).shape == (1, 1, 4, 4)
    assert torch.equal(thinned(maps, "conv3_1", (3, 3)), maps)


def module_of(pictures: Path, weights: dict[str, Tensor], **changes: Any) -> Teaching:
    settings = read_params().distillation
    assert settings is not None
    settings = settings.model_copy(update=changes)
    teacher = Features(weights, "avg")
    units, means = scales(teacher, Crops(loaded(pictures), 32, (0,)))
    lessons = Lessons(teacher, units, means, loaded(pictures), settings)
    return Teaching(Student(settings.widths, units, settings.seed), lessons, settings)


def test_epoch_shows_every_image_as_often_as_asked(
    section: Callable[..., None], pictures: Path, weights: dict[str, Tensor]
) -> None:
    module = module_of(pictures, weights, images=5, passes=3, batch_size=2)
    lessons = list(module.lessons.epoch(0, module.student.weights()))
    assert sorted(len(lesson.images) for lesson in lessons) == [1, 1, 1, 2, 2, 2, 2, 2, 2]
    again = list(module.lessons.epoch(0, module.student.weights()))
    assert all(torch.equal(a.images, b.images) for a, b in zip(lessons, again, strict=True))
    other = next(iter(module.lessons.epoch(1, module.student.weights())))
    assert not any(torch.equal(other.images, lesson.images) for lesson in lessons)


def test_optimised_images_come_into_lessons_after_the_plain_epochs(
    section: Callable[..., None],
    pictures: Path,
    weights: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = module_of(pictures, weights, images=40, optimised=0.5, plain_epochs=1)
    marked = [torch.full((8, 3, 32, 32), 7.0)]
    monkeypatch.setattr("pipeline.distillation.lessons.optimised", lambda *_: marked)
    student = module.student.weights()
    counts = []
    for number in (0, 1):
        lessons = module.lessons.epoch(number, student)
        counts.append(
            sum(int((lesson.images == 7).all(3).all(2).all(1).sum()) for lesson in lessons)
        )
    assert counts == [0, 8]


def test_optimised_images_are_three_moments_of_a_run(
    section: Callable[..., None], pictures: Path, weights: dict[str, Tensor]
) -> None:
    module = module_of(pictures, weights)
    crops = Crops(loaded(pictures), 32, (0,))
    found = optimised(module.student.weights(), module.lessons.means, crops)
    assert [images.shape for images in found] == [(8, 3, 32, 32)] * 3
    assert all(images.isfinite().all() for images in found)
    assert not torch.equal(found[0], found[-1])


def test_residual_of_a_perfect_student_is_nothing_and_of_a_silent_one_more_than_all(
    section: Callable[..., None], pictures: Path, weights: dict[str, Tensor]
) -> None:
    module = module_of(pictures, weights)
    lesson = module.lessons.lesson(Crops(loaded(pictures), 32, (0,)).plain(2), (0, 0))
    with torch.no_grad():
        for head in module.student.heads.values():
            head.zero_()
        silent = module.residuals(lesson)
        perfect = {}
        for name, activations in module.student(lesson.images):
            maps = thinned(activations, name, lesson.first)
            target = torch.einsum(
                "nc,bchw->bnhw", torch.ones_like(module.student.heads[name]), maps
            )
            module.student.heads[name].fill_(1.0)
            perfect[name] = target
    assert all(raw > 1 for raw, _ in silent.values())
    found = module.residuals(lesson._replace(targets=perfect))
    assert all(max(pair) < 1e-8 for pair in found.values())


def test_student_learns(
    section: Callable[..., None], pictures: Path, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    module = module_of(pictures, weights, epochs=30, widths=[8, 8, 8, 8, 8])
    rows = list(csv.DictReader(teach(module, tmp_path / "checkpoints", None).splitlines()))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 31))
    first, last = (float(rows[index]["loss"]) for index in (0, -1))
    assert last < 0.85 * first
    assert {f"residual_{name}" for name in SMALL_LAYERS} < set(rows[0])


def test_interrupted_lessons_end_as_if_they_were_not(
    section: Callable[..., None],
    pictures: Path,
    weights: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = {"epochs": 4, "optimised": 0.5, "plain_epochs": 2}
    whole = module_of(pictures, weights, **changes)
    curve = teach(whole, tmp_path / "whole", None)

    class KilledError(Exception):
        pass

    broken = module_of(pictures, weights, **changes)
    begin = broken.lessons.epoch

    def epoch(number: int, student: Any) -> Any:
        if number == 3:
            raise KilledError
        return begin(number, student)

    monkeypatch.setattr(broken.lessons, "epoch", epoch)
    with pytest.raises(KilledError):
        teach(broken, tmp_path / "broken", None)
    resumed = module_of(pictures, weights, **changes)
    assert teach(resumed, tmp_path / "broken", None) == curve
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


def test_missing_section_and_missing_pictures_are_named(
    section: Callable[..., None], workspace: Path, weights_file: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    section(pictures=[str(empty)])
    with pytest.raises(UserError, match=r"has 0 picture\(s\); some hundred are needed"):
        distil(read_params())
    section(pictures=["data/training"])
    with pytest.raises(
        UserError, match=r"there is no folder data/training\. Some hundred pictures"
    ):
        distil(read_params())
    params: dict[str, Any] = tiny_params(weights_file)
    del params["distillation"]
    write_params(workspace, params)
    with pytest.raises(UserError, match=r"has no section distillation\. Add it"):
        distil(read_params())


def test_lessons_that_diverge_end_with_the_remedy_and_leave_the_network_alone(
    section: Callable[..., None], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.distillation.module.FLAT", float("nan"))
    output = workspace / "small.safetensors"
    with pytest.raises(
        UserError, match=r"loss is nan in epoch 1: .* Lower distillation\.learning_rate"
    ):
        distil(read_params(), output)
    assert not output.exists()
    assert not list(workspace.rglob("last.ckpt"))


def test_network_is_written_as_safetensors(section: Callable[..., None]) -> None:
    with pytest.raises(UserError, match=r"written as \.safetensors, not as mine\.json"):
        distil(read_params(), Path("mine.json"))


def test_layer_that_would_not_be_learned_is_named(section: Callable[..., None]) -> None:
    section(layers={"conv1_1": 1.0})
    with pytest.raises(UserError, match="conv1_2 has no weight above 0"):
        read_params()


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    assert _reduced(Image.new("RGB", (1000, 600))).size == (400, 240)
    assert _reduced(Image.new("RGB", (40, 30))).size == (40, 30)
