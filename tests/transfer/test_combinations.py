"""Random combinations of the controls run to their end, and continue after an interruption."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import random
import signal
import sys
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_params, write_params
from PIL import Image
from test_stylize import history, outputs

from pipeline import paths
from pipeline.config.params import read_params
from pipeline.config.schema import Experiment
from pipeline.imaging.colour import luminance
from pipeline.imaging.picture_files import read_picture
from pipeline.imaging.tensors import to_tensor
from pipeline.losses.objective import Objective
from pipeline.stages.stylize import stylize
from pipeline.transfer import phases
from pipeline.transfer.build import build_objective, picture_size, read_inputs
from pipeline.transfer.memory import HEAP, demands, estimate
from pipeline.transfer.phases import phases_of

PICTURES = "chelsea", "coffee", "gravel"
LAYERS = ["conv1_1", "conv2_1"]
STYLE_TERMS = "moments", "histogram", "sliced_wasserstein"


def random_settings(seed: int) -> dict[str, Any]:
    """Returns settings of an experiment that contradict each other nowhere."""
    draw = random.Random(seed)

    def maybe(share: float = 0.4) -> bool:
        return draw.random() < share

    def weights(*names: str) -> dict[str, float]:
        return {f"{name}_weight": draw.choice([0.5, 10.0]) if maybe() else 0.0 for name in names}

    def style(number: int, masks: bool) -> Any:
        image = draw.choice(PICTURES)
        if maybe(0.2):
            return image
        found: dict[str, Any] = {"image": image, "weight": draw.choice([0.25, 1.0, 3.0])}
        found["scale"] = draw.choice([0.5, 1.0, 1.0, 2.0])
        if number and maybe():
            found["layers"] = [draw.choice(LAYERS)]
        if masks and maybe(0.7):
            label = "#ffffff" if maybe() else None
            found["content_mask"] = {"image": f"{content}-mask", "label": label}
        if masks and maybe():
            found["style_mask"] = f"{image}-mask"
        return found

    content, masks = draw.choice(PICTURES[:2]), maybe()
    settings: dict[str, Any] = {
        "content": content,
        "style": [style(number, masks) for number in range(draw.choice([1, 1, 2, 3]))],
        "style_mix": draw.choice(["losses", "losses" if masks else "gram_matrices"]),
        "init": draw.choice(["noise", "noise", "content", "style", *PICTURES]),
        "colour": draw.choice(["style", "luminance", "cholesky", "pca"]),
        "style_resize": draw.choice(["content", "own"]),
        "precision": draw.choice(["float32", "float32", "bf16"]),
        "convention": draw.choice(["mean", "paper"]),
        "size": draw.choice([32, 37]),
        "range_weight": draw.choice([0.0, 1000.0]),
        "lbfgs": {"line_search_fn": draw.choice([None, None, "strong_wolfe"])},
        **weights("laplacian", "variation"),
        **({} if masks else weights(*STYLE_TERMS, "spectrum")),
        **{f"{name}_layers": LAYERS for name in STYLE_TERMS},
    }
    # The content loss as printed is larger by 2 N M.
    settings["content_weight"] = {"mean": 1.0, "paper": 1e-5}[settings["convention"]]
    if maybe():
        networks = [draw.choice(["backbone", "embedded"]) for _ in range(draw.choice([1, 2]))]
        settings["sizes"] = [
            {"size": 16 + 8 * number, "evaluations": 3, "network": network}
            for number, network in enumerate(networks)
        ]
    if maybe(0.2):
        settings |= {"warm_start": "embedded", "warm_evaluations": 3}
    if not any(settings.get(f"{name}_weight") for name in ("histogram", "sliced_wasserstein")):
        settings["tile"] = draw.choice(["auto", 16])
    return settings


def write_settings(weights_file: Path, settings: dict[str, Any], every: float = 30) -> Experiment:
    """Writes masks, and params.yaml with the experiment ``first``."""
    params: Any = tiny_params(weights_file)
    for name in PICTURES:
        height, width = picture_size(name)
        inside = np.zeros((height, width), np.uint8)
        inside[:, : width // 2] = 255
        Image.fromarray(inside).convert("RGB").save(paths.picture(f"{name}-mask"))
        params["images"][f"{name}-mask"] = {"source": "mask.png"}
    params["defaults"] |= {"evaluations": 5, "first_step": 0.01, "intermediates": [1, 3]}
    params["experiments"] = {"first": settings}
    params |= {"figures": {}, "tracking": {"mode": "disabled"}, "checkpoints": {"every": every}}
    write_params(Path(), params)
    return read_params().experiments["first"]


def target_bytes(objective: Objective) -> int:
    """Returns the bytes of all targets that are as large as activations."""
    terms = (term for term in objective.terms if term.name in ("histogram", "sliced_wasserstein"))
    return sum(target.nbytes for term in terms for target in term.targets.values())


@pytest.mark.parametrize("seed", range(30))
def test_combination_runs_to_its_end(
    seed: int, prepared: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Objective] = []

    def build(*arguments: Any, **options: Any) -> Objective:
        built.append(build_objective(*arguments, **options))
        return built[-1]

    monkeypatch.setattr(phases, "build_objective", build)
    settings = write_settings(weights_file, random_settings(seed))
    stylize("first")
    metrics, status = (
        json.loads((paths.EXPERIMENTS / f"first/{name}.json").read_text())
        for name in ("metrics", "status")
    )
    assert status["kind"] in ("budget", "standstill", "minimum"), status
    assert all(map(math.isfinite, metrics.values()))
    assert metrics["total"] <= 1.05 * history("first")[0]["total"]  # which may be in bf16
    terms = {term.name for term in settings.terms()}
    for phase in phases_of(settings):
        rows = history("first", phase.name)
        assert rows, phase.name
        assert terms <= set(rows[0])
    inputs = read_inputs(settings)
    size = tuple(inputs.content_image.shape[2:])
    image = read_picture(paths.EXPERIMENTS / "first/image.png")
    assert (image.height, image.width) == size
    expected = demands(settings, torch.device("cpu"), "float32")
    assert len(expected) == len(phases_of(settings))
    assert expected[-1].size == size
    for demand in expected:
        assert demand.needs == built[-1].needs
        of_phase = [each for each in built if channels(each) == demand.channels["conv1_1"]]
        assert of_phase
    pictures = sum(tensor.nbytes for tensor in inputs.images.values())
    kept = target_bytes(built[-1])
    assert kept <= 4 * activations(expected[-1])
    assert pictures + kept < estimate(expected[-1]) - HEAP


def channels(objective: Objective) -> int:
    return len(objective.features.convolutions["conv1_1"].bias)  # type: ignore[arg-type]


def activations(demand: Any) -> int:
    """Returns the activations of all style images that are kept as targets."""
    return sum(
        count * demand.channels[layer] * (height * width >> (0 if layer == "conv1_1" else 2))
        for layer, count in demand.targets.items()
        for height, width in demand.style_sizes
    )


def kill_at(workspace: Path, evaluation: int) -> None:
    """Runs the experiment ``first`` in a process that SIGKILL ends in the middle.

    That is the evaluation of this number, or a later one if there is no checkpoint before it.
    """
    honest, count = Objective.forward, itertools.count(1)

    def forward(self: Objective, image: torch.Tensor) -> dict[str, torch.Tensor]:
        if next(count) >= evaluation and any(Path("data/checkpoints").glob("*.pt")):
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(self, image)

    os.chdir(workspace)
    Objective.forward = forward  # type: ignore[method-assign]
    stylize("first")


@pytest.fixture(scope="module")
def forks() -> Any:
    """Processes forked from one that has imported this module and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    return context


@pytest.mark.parametrize("seed", [1, 4, 9, 16])
def test_combination_continues_to_the_same_bits_after_sigkill(
    seed: int, prepared: Path, weights_file: Path, forks: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_settings(weights_file, random_settings(seed), every=0)
    stylize("first")
    expected = outputs("first")
    process = forks.Process(target=kill_at, args=(prepared, 2 + seed % 4))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert outputs("first") != expected
    capsys.readouterr()
    stylize("first")
    assert "first: goes on after evaluation" in capsys.readouterr().out
    assert outputs("first") == expected


def test_luminance_transfer_keeps_the_chroma_of_the_content(
    prepared: Path, weights_file: Path
) -> None:
    """Within one step of 8 bits, in the result and in the intermediates of each phase."""
    settings = {
        "content": "coffee",
        "style": "gravel",
        "colour": "luminance",
        "size": 48,
        "sizes": [{"size": 24, "evaluations": 2}],
    }
    experiment = write_settings(weights_file, settings)
    stylize("first")
    folder = paths.EXPERIMENTS / "first"
    pictures = {f"intermediates/{1:05}.png": 24, f"intermediates/{3:05}.png": None}
    for file, size in {**pictures, "image.png": None}.items():
        content = read_inputs(experiment, size).content_image
        saved = to_tensor(read_picture(folder / file))
        assert saved.shape == content.shape
        matrix = torch.tensor([[0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
        chroma = [matrix @ image.flatten(2)[0] for image in (saved, content)]
        assert (chroma[0] - chroma[1]).abs().max() < 1 / 255
        assert (luminance(saved) - luminance(content)).abs().max() > 0.1
