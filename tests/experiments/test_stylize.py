"""Stage ``stylize`` end to end, on a small picture: what it writes, logs, refuses and repeats."""

from __future__ import annotations

import csv
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import few_or_many_threads, tiny_params, write_params
from PIL import Image
from test_result_files import sixteen_bits_of_png
from test_tracking import inspected, of_kind, summary_of

import pipeline
from pipeline import paths
from pipeline.config.params import read_params
from pipeline.errors import UserError
from pipeline.experiments import run
from pipeline.experiments.results import COMPARED
from pipeline.files import sha256
from pipeline.imaging.output.srgb_profile import SRGB_PROFILE
from pipeline.imaging.picture_files import read_picture, write_png
from pipeline.imaging.tensors import to_tensor
from pipeline.measures.picture import measure
from pipeline.networks.prepare import prepare
from pipeline.records.provenance import code_version
from pipeline.stages.stylize import main, stylize
from pipeline.transfer.build import build_objective, read_inputs


def change(workspace: Path, weights_file: Path, name: str, **settings: Any) -> None:
    params: Any = tiny_params(weights_file)
    params["experiments"][name].update(settings)
    write_params(workspace, params)


def history(name: str, stage: str = "main") -> list[dict[str, float]]:
    with (paths.EXPERIMENTS / name / "history.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.pop("stage") == stage]
    return [{key: float(value) for key, value in row.items()} for row in rows]


def losses_of(name: str) -> dict[str, float]:
    """Returns the losses and counts in status.json."""
    status = json.loads((paths.EXPERIMENTS / name / "status.json").read_text())
    return {**status["losses"], **status["counts"]}


def pixels(name: str) -> bytes:
    return read_picture(paths.EXPERIMENTS / name / "image.png").tobytes()


def outputs(name: str) -> dict[str, bytes]:
    folder = paths.EXPERIMENTS / name
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_outputs_are_complete_and_agree_with_each_other(prepared: Path) -> None:
    stylize("first")
    assert set(outputs("first")) == {
        "history.csv",
        "image.png",
        "intermediates/00001.png",
        "intermediates/00004.png",
        "metrics.json",
        "provenance.json",
        "status.json",
    }
    rows = history("first")
    assert [row["evaluation"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert all(row["gradient_norm"] > 0 for row in rows)
    for row in rows:
        parts = [value for key, value in row.items() if key.endswith("_weighted")]
        assert sum(parts) == pytest.approx(row["total"], rel=1e-5)
    metrics = losses_of("first")
    assert (metrics["evaluations"], metrics["iterations"]) == (6, 6)
    assert metrics["total"] < rows[-1]["total"] < rows[0]["total"]
    assert metrics["saved_total"] != metrics["total"]


def test_picture_and_provenance_name_what_made_them(prepared: Path) -> None:
    stylize("first")
    folder = paths.EXPERIMENTS / "first"
    record = json.loads((folder / "provenance.json").read_text())
    assert record["inputs"] == {
        "content": sha256(paths.picture("chelsea")),
        "style": sha256(paths.picture("gravel")),
        "weights": sha256(paths.WEIGHTS_FILE),
    }
    assert record["plan"] == sha256(paths.plan("first"))
    assert record["settings"] == read_params().experiments["first"].model_dump()
    assert record["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert record["device"] == "cpu"
    assert record["backbone"]["rescale"]
    assert record["version"] == pipeline.__version__
    with Image.open(folder / "image.png") as picture:
        assert json.loads(picture.text["Settings"]) == record["settings"]
        assert json.loads(picture.text["Inputs"]) == record["inputs"]


@pytest.mark.usefixtures("measured")
def test_metrics_are_the_measures_of_the_saved_picture_and_three_losses(
    prepared: Path,
) -> None:
    stylize("first")
    metrics = json.loads((paths.EXPERIMENTS / "first/metrics.json").read_text())
    losses = losses_of("first")
    assert {name: metrics.pop(name) for name in COMPARED} == {n: losses[n] for n in COMPARED}
    settings = read_params().experiments["first"]
    saved = to_tensor(read_picture(paths.EXPERIMENTS / "first/image.png"))
    files = {paths.picture(style.image): style.weight for style in settings.styles.values()}
    content = paths.picture(settings.content)
    assert metrics == measure(saved, content, files, paths.WEIGHTS_FILE)
    assert "style_distance_vgg19" in metrics


def test_saved_metrics_are_those_of_the_picture_as_written(prepared: Path) -> None:
    stylize("first")
    settings = read_params().experiments["first"]
    inputs = read_inputs(settings)
    device = torch.device("cpu")
    objective = build_objective(settings, paths.WEIGHTS_FILE, inputs, device, "float32")
    saved = to_tensor(read_picture(paths.EXPERIMENTS / "first/image.png"))
    metrics = losses_of("first")
    assert metrics["saved_total"] == pytest.approx(objective(saved)["total"].item(), rel=1e-5)


def test_result_has_the_bits_resolution_and_transparency_asked_for(
    prepared: Path, weights_file: Path
) -> None:
    content = paths.picture("chelsea")
    transparent = read_picture(content)
    transparent.putalpha(Image.linear_gradient("L").resize(transparent.size))
    content.unlink()  # others have the same file
    write_png(transparent, content, {})
    output = {"bits": 16, "dpi": 300, "alpha": True}
    change(prepared, weights_file, "first", output=output, size=48)
    stylize("first")
    image = paths.EXPERIMENTS / "first/image.png"
    pixels = torch.from_numpy(sixteen_bits_of_png(image) / np.float32(65535)).permute(2, 0, 1)[None]
    assert pixels.shape == (1, 4, 31, 48)
    assert torch.allclose(pixels[0, 3].mean(1), torch.linspace(0, 1, 31), atol=0.02)
    with Image.open(image) as picture:
        assert picture.info["icc_profile"] == SRGB_PROFILE
        assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        assert json.loads(picture.text["Settings"])["output"] == output
    settings = read_params().experiments["first"]
    inputs, device = read_inputs(settings), torch.device("cpu")
    objective = build_objective(settings, paths.WEIGHTS_FILE, inputs, device, "float32")
    metrics = losses_of("first")
    saved = objective(pixels[:, :3].contiguous())["total"].item()
    assert metrics["saved_total"] == pytest.approx(saved, rel=1e-6)
    assert metrics["saved_total"] == pytest.approx(metrics["total"], rel=1e-2)


def test_opaque_content_image_gives_an_opaque_result(prepared: Path, weights_file: Path) -> None:
    change(prepared, weights_file, "first", output={"alpha": True})
    stylize("first")
    with Image.open(paths.EXPERIMENTS / "first/image.png") as picture:
        assert picture.mode == "RGB"


def test_timelapse_shows_all_phases_and_goes_with_its_run(
    prepared: Path, weights_file: Path
) -> None:
    settings: dict[str, Any] = {"size": 64, "evaluations": 3, "first_step": 0.05}
    settings |= {"sizes": [{"size": 32, "evaluations": 2}]}
    change(prepared, weights_file, "first", **settings, timelapse=True, intermediates=[1, 2, 3])
    stylize("first")
    folder = paths.EXPERIMENTS / "first"
    before = (folder / paths.TIMELAPSE).read_bytes()
    with Image.open(folder / paths.TIMELAPSE) as film, Image.open(folder / "image.png") as image:
        assert (film.n_frames, film.size) == (4, image.size)
    stylize("first")
    assert (folder / paths.TIMELAPSE).read_bytes() == before
    change(prepared, weights_file, "first", **settings, intermediates=[1, 2, 3])
    stylize("first")
    assert not (folder / paths.TIMELAPSE).exists()


def test_same_inputs_give_the_same_bytes_twice(
    prepared: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do at another git revision and with another number of threads."""
    params: Any = tiny_params(weights_file)
    del params["defaults"]["threads"]
    write_params(prepared, params)
    monkeypatch.setattr(run, "DEFAULT_THREADS", 1)
    stylize("first")
    before = outputs("first")
    git = "git", "-c", "user.name=tests", "-c", "user.email=tests@localhost"
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "one"], check=True)
    monkeypatch.setattr(run, "DEFAULT_THREADS", 2)
    code_version.cache_clear()
    stylize("first")
    code_version.cache_clear()
    assert outputs("first") == before


def test_seed_changes_the_picture_only_with_noise(prepared: Path, weights_file: Path) -> None:
    pictures = {}
    for name in ("first", "second"):
        for seed in (0, 1):
            change(prepared, weights_file, name, seed=seed)
            stylize(name)
            picture = read_picture(paths.EXPERIMENTS / name / "image.png")
            pictures[name, seed] = picture.tobytes()
    assert pictures["first", 0] != pictures["first", 1]
    assert pictures["second", 0] == pictures["second", 1]


@pytest.mark.parametrize(
    ("settings", "content", "style"),
    [
        ({"size": 32}, (21, 32), (21, 32)),
        ({"size": 32, "style_resize": "own"}, (21, 32), (32, 32)),
        ({"size": 32, "size_edge": "short"}, (32, 48), (32, 48)),
        ({"size": None}, (300, 451), (300, 451)),
        ({"size": None, "style_resize": "own"}, (300, 451), (512, 512)),
    ],
)
def test_pictures_get_the_size_asked_for(
    settings: dict[str, Any],
    content: tuple[int, int],
    style: tuple[int, int],
    prepared: Path,
    weights_file: Path,
) -> None:
    change(prepared, weights_file, "first", **settings)
    inputs = read_inputs(read_params().experiments["first"])
    assert inputs.content_image.shape == inputs.start.shape == (1, 3, *content)
    assert inputs.images["style"].shape == (1, 3, *style)


def test_start_is_the_picture_asked_for(prepared: Path, weights_file: Path) -> None:
    for init in ("content", "style"):
        change(prepared, weights_file, "first", init=init, style_resize="own")
        inputs = read_inputs(read_params().experiments["first"])
        assert inputs.start.shape == inputs.content_image.shape
        if init == "content":
            assert torch.equal(inputs.start, inputs.content_image)


def test_offline_run_has_a_row_for_each_evaluation_and_the_images(prepared: Path) -> None:
    stylize("first")
    records = inspected(prepared)
    text = json.dumps(records)
    rows = [record["history"]["item"] for record in records if "history" in record]
    assert [row["evaluation"] for row in rows if "total" in row] == [*range(1, 7)], text[:2000]
    assert len(rows) == 7
    assert rows[-1]["result.path"].startswith("media/images/result")
    pictures = [path.name for path in prepared.glob("wandb/offline-run-*/files/media/images/*")]
    assert sum(name.startswith("intermediate") for name in pictures) == 2
    assert sum(name.startswith("result") for name in pictures) == 1
    artifacts = {(r["artifact"]["name"], r["artifact"]["type"]) for r in records if "artifact" in r}
    inputs = {("picture.chelsea", "input"), ("picture.gravel", "input")}
    assert artifacts == {("first", "result"), ("network.vgg19", "network")} | inputs
    for wanted in ("content_weight", "weights_sha256", sha256(paths.picture("chelsea"))):
        assert wanted in text


def test_summary_in_wandb_is_of_the_result_alone(prepared: Path, weights_file: Path) -> None:
    """What W&B would add is of the last evaluation, which the last step has left behind."""
    coarse = {"schedule": "coarse_to_fine", "coarse_evaluations": 3, "size": 112}
    change(prepared, weights_file, "first", **coarse, warm_start="embedded", warm_evaluations=3)
    stylize("first")
    records, folder = inspected(prepared), paths.EXPERIMENTS / "first"
    logged = {key for record in records for key in record.get("history", {}).get("item", {})}
    assert {"half/total", "warm_start/gradient_norm", "style_conv1_1_weighted"} <= logged
    summary = summary_of(records)
    assert summary.pop("result")["path"].startswith("media/images/result")
    metrics = json.loads((folder / "metrics.json").read_text())
    ending = {"end": "budget", "result_sha256": sha256(folder / "image.png")}
    assert summary == metrics | losses_of("first") | ending
    assert metrics["total"] < history("first")[-1]["total"]


@pytest.mark.parametrize("queued", ["exp-1", None])
def test_config_in_wandb_tells_runs_apart(
    queued: str | None, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = {"version": "1", "revision": 40 * "1", "dirty": True}
    monkeypatch.setattr(run, "code_version", lambda: code)
    if queued:
        monkeypatch.setenv("DVC_EXP_NAME", queued)
    stylize("first")
    config = of_kind(inspected(prepared), "run")["config"]["update"]
    assert config["experiment"] == "first"
    assert config.get("dvc_experiment") == queued
    assert config["code"] == code
    assert abs(datetime.fromisoformat(config["started"]) - datetime.now(UTC)).seconds < 600
    assert config["plan"] == sha256(paths.plan("first"))
    assert config["device"] == "cpu"
    assert config["precision"] in ("float32", "bf16")


def test_image_that_does_not_move_is_an_error(prepared: Path, weights_file: Path) -> None:
    change(prepared, weights_file, "first", evaluations=1, first_step=1e-12)
    with pytest.raises(UserError, match="the image did not move"):
        stylize("first")


def test_unknown_experiment_names_the_nearest(prepared: Path) -> None:
    with pytest.raises(UserError, match=r"no plan 'frist' in data/plan. Did you mean 'first'\?"):
        stylize("frist")


def test_backbone_record_tells_what_was_done(prepared: Path, weights_file: Path) -> None:
    record = json.loads(paths.BACKBONE_RECORD.read_text())
    assert record["weights_sha256"] == sha256(weights_file)
    assert record["pooling"] == "avg"
    assert list(record["calibration"]) == ["package:skimage/data/coffee.png"]
    assert set(record["divisors"]["conv4_2"]) == {"min", "median", "max"}
    before = paths.WEIGHTS_FILE.read_bytes()
    prepare(read_params().backbone)
    assert paths.WEIGHTS_FILE.read_bytes() == before


@pytest.mark.parametrize("architecture", ["vgg19", "vgg19-small"])
def test_prepared_network_is_the_same_with_any_number_of_threads(
    architecture: str, prepared: Path, weights_file: Path
) -> None:
    params: Any = tiny_params(weights_file)
    weights = "embedded" if architecture == "vgg19-small" else str(weights_file)
    params["backbone"] |= {"architecture": architecture, "weights": weights}
    write_params(prepared, params)
    networks = set()
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        prepare(read_params().backbone)
        assert torch.get_num_threads() == threads
        networks.add(paths.WEIGHTS_FILE.read_bytes() + paths.EMBEDDED_FILE.read_bytes())
    assert len(networks) == 1


def test_results_are_the_same_with_any_number_of_threads(
    prepared: Path, weights_file: Path
) -> None:
    pictures = set()
    for threads in few_or_many_threads():
        change(prepared, weights_file, "first", threads=threads, size=64, evaluations=12)
        stylize("first")
        of_run = outputs("first")
        pictures.add((of_run["history.csv"], of_run["metrics.json"], pixels("first")))
    assert len(pictures) == 1


def test_missing_network_is_reported(prepared: Path) -> None:
    paths.WEIGHTS_FILE.unlink()
    with pytest.raises(UserError, match="run the stage backbone first"):
        stylize("first")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has it")
def test_missing_device_is_reported(prepared: Path, weights_file: Path) -> None:
    change(prepared, weights_file, "first", device="mps")
    with pytest.raises(UserError, match="device is 'mps', but torch finds none here"):
        stylize("first")


def test_warm_start_is_two_phases_of_one_run(prepared: Path, weights_file: Path) -> None:
    change(prepared, weights_file, "first", warm_start="embedded", warm_evaluations=5, size=48)
    stylize("first")
    warm, rest = history("first", "warm_start"), history("first")
    assert [row["evaluation"] for row in warm + rest] == list(range(1, 12))
    assert [row["iteration"] for row in rest] == list(range(6))
    folder = paths.EXPERIMENTS / "first"
    metrics = losses_of("first")
    assert (metrics["earlier_evaluations"], metrics["evaluations"]) == (5, 6)
    record = json.loads((folder / "provenance.json").read_text())
    assert record["inputs"]["warm_start_weights"] == sha256(paths.EMBEDDED_FILE)
    assert {path.name for path in (folder / "intermediates").iterdir()} == {
        "00001.png",
        "00004.png",
    }
    logged = [row["history"] for row in inspected(prepared) if "history" in row]
    text = [json.dumps(row) for row in logged]
    assert sum("warm_start/total" in row for row in text) == 5
    assert sum('"total"' in row for row in text) == 6
    change(prepared, weights_file, "first", warm_start=None, size=48)
    stylize("first")
    assert history("first")[0]["total"] == pytest.approx(metrics["start_total"], rel=2e-3)


@pytest.mark.parametrize("warm_start", [None, "embedded"])
def test_coarse_to_fine_is_one_run_through_the_sizes(
    warm_start: str | None, prepared: Path, weights_file: Path
) -> None:
    change(
        prepared,
        weights_file,
        "first",
        schedule="coarse_to_fine",
        coarse_evaluations=3,
        warm_start=warm_start,
        warm_evaluations=2,
        size=200,
        intermediates=[1, 4, 7],
    )
    stylize("first")
    phases = ["quarter", "half", *(["warm_start"] if warm_start else []), "main"]
    rows = [row for phase in phases for row in history("first", phase)]
    assert [row["evaluation"] for row in rows] == list(range(1, len(rows) + 1))
    folder = paths.EXPERIMENTS / "first"
    metrics = losses_of("first")
    assert metrics["earlier_evaluations"] == len(rows) - metrics["evaluations"]
    with Image.open(folder / "image.png") as picture:
        full = picture.size
    edges = []
    for file in sorted((folder / "intermediates").iterdir()):
        with Image.open(file) as picture:
            edges.append(picture.size)
    assert edges == [(full[0] // 4, full[1] // 4), (full[0] // 2, full[1] // 2), full]
    # Each phase begins with the image of the one before, whose loss is far lower than the start's.
    first = history("first", phases[2])[0]["total"]
    assert warm_start or first < metrics["start_total"]


def test_phases_of_too_small_images_are_left_out(prepared: Path, weights_file: Path) -> None:
    change(
        prepared, weights_file, "first", schedule="coarse_to_fine", coarse_evaluations=2, size=48
    )
    stylize("first")
    metrics = losses_of("first")
    assert metrics["earlier_evaluations"] == 0


def test_small_network_takes_the_place_of_vgg19(prepared: Path, weights_file: Path) -> None:
    params: dict[str, Any] = tiny_params(weights_file)
    for settings in params["experiments"].values():
        settings |= {"content_layers": ["conv4_2"], "size": 48, "evaluations": 30}
    params["backbone"] |= {"architecture": "vgg19-small", "weights": "embedded"}
    write_params(prepared, params)
    prepare(read_params().backbone)
    record = json.loads(paths.BACKBONE_RECORD.read_text())
    assert record["weights_sha256"] == record["embedded_sha256"]
    assert paths.WEIGHTS_FILE.read_bytes() == paths.EMBEDDED_FILE.read_bytes()
    stylize("second")
    rows = history("second")
    assert rows[-1]["total"] < rows[0]["total"] / 4


@pytest.mark.parametrize("names", [[], ["first", "second"]])
def test_command_takes_one_experiment(
    names: list[str], workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(names)
    assert end.value.code == 1
    assert f"{len(names)} names were given. Name one experiment" in capsys.readouterr().err


def test_threads_of_one_experiment_are_not_those_of_the_next(
    prepared: Path, weights_file: Path
) -> None:
    """A worker computes many experiments in one process."""
    before = run.DEFAULT_THREADS
    change(prepared, weights_file, "first", threads=before + 1)
    stylize("first")
    assert torch.get_num_threads() == before + 1
    change(prepared, weights_file, "first", threads=None)
    stylize("first")
    assert torch.get_num_threads() == before
