"""Measures the time that each combination of settings takes to reach the loss of a plain run."""

from __future__ import annotations

import argparse
import itertools
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import torch
from PIL import Image
from torch import Tensor

from benchmarks.problems import KIND, Problem
from benchmarks.reference import optimised
from pipeline.files import replacing
from pipeline.imaging.tensors import to_picture, to_size, to_tensor, white_noise
from pipeline.losses.objective import Objective
from pipeline.runtime.device import find_precision
from pipeline.runtime.precision import Precision
from pipeline.runtime.trainer import run
from pipeline.transfer.callbacks import Refinement
from pipeline.transfer.module import StyleTransfer
from pipeline.transfer.phases import COARSE

EVALUATIONS, WARM, EVERY = 500, 200, 10
"""Of the plain run; of the small network in a warm start; from one judgement to the next."""


class Setting(NamedTuple):
    """A precision, evaluations of the small network before, and for both networks the rest.

    With ``coarse`` the small network has so many at a quarter of the size and at half before.
    """

    precision: Precision | Literal["auto"]
    warm: int
    lbfgs: dict[str, Any]
    range_weight: float = 0.0
    coarse: int = 0


SETTINGS = {
    "float32": Setting("float32", 0, {}),
    "auto": Setting("auto", 0, {}),
    "auto, scaling mean": Setting("auto", 0, {"scaling": "mean"}),
    "auto, warm start": Setting("auto", WARM, {}),
    "auto, warm start, scaling mean": Setting("auto", WARM, {"scaling": "mean"}),
    "auto, warm start, history 100": Setting("auto", WARM, {"history_size": 100}),
    "auto, warm start, history 100, scaling mean": Setting(
        "auto", WARM, {"history_size": 100, "scaling": "mean"}
    ),
    "auto, coarse to fine, warm start of 100, history 100, scaling mean": Setting(
        "auto", 100, {"history_size": 100, "scaling": "mean"}, coarse=100
    ),
    "auto, warm start, history 100, scaling mean, range weight 1000": Setting(
        "auto", WARM, {"history_size": 100, "scaling": "mean"}, 1000.0
    ),
}
if KIND == "-gpu":
    SETTINGS["tf32"] = Setting("tf32", 0, {})
PICTURES = f"benchmarks/results/speed-{{}}-{{}}{KIND}.jpg"
"""Side by side: the plain run's picture, and each setting's when it reached the same loss."""


class Judge(pl.Callback):
    """Takes the float32 loss now and then, off the clock, and stops the run at a target.

    The loss is that without a range weight: what the plain script has.

    Attributes:
        curve: (evaluation, seconds, float32 total loss).
    """

    def __init__(self, exact: Objective, target: float) -> None:
        self.exact, self.target = exact, target
        self.curve: list[tuple[int, float, float]] = []
        self.spent, self.begun = 0.0, time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(module, StyleTransfer)
        if module.run.evaluations % EVERY:
            return
        self.spent += time.perf_counter() - self.begun
        with torch.no_grad():
            loss = float(self.exact(module.image)["total"])
        self.curve.append((module.run.evaluations, self.spent, loss))
        trainer.should_stop = loss <= self.target
        self.begun = time.perf_counter()


def loss(init: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures the time to the loss of a plain run of ``EVALUATIONS``; writes ``PICTURES``.

    Args:
        init: ``content`` or ``noise``, at the default level.
    """
    problem = Problem(arguments.weights, arguments.size)
    start = _start(problem, init)
    whole = target = 0.0
    plain = optimised(problem.plain(), start, EVALUATIONS, bound=init == "noise")
    for target, spent, image in plain:  # noqa: B007
        whole += spent
    pictures = [to_picture(image)]
    saved = _saved_loss(problem.ours("float32"), pictures[0])
    row: dict[str, Any] = {"target": target, "plain_s": whole, "plain_saved": saved, "settings": {}}
    for name in arguments.settings:
        row["settings"][name], picture = _to_loss(problem, init, target, SETTINGS[name])
        pictures.append(picture)
        print(init, name, row["settings"][name], flush=True)
    _write(pictures, Path(PICTURES.format(init, arguments.size)))
    return row | {"size": f"{problem.size[1]}×{problem.size[0]}"}


def _start(problem: Problem, init: str, division: int = 1) -> Tensor:
    content, _ = problem.pictures(division)
    if init == "content":
        return content
    return white_noise(tuple(content.shape[-2:]), 0, 0.1).to(content)  # type: ignore[arg-type]


def _to_loss(
    problem: Problem, init: str, target: float, setting: Setting
) -> tuple[dict[str, Any], Image.Image]:
    """Returns seconds and evaluations to a loss, or to the least one reached, and the picture."""
    precision = setting.precision
    if precision == "auto":
        precision = find_precision("auto", problem.device)
    exact = problem.ours("float32")
    stages = [(division, setting.coarse) for division in COARSE.values() if setting.coarse]
    stages += [(1, setting.warm)] if setting.warm else []
    begin = time.perf_counter()
    start = _start(problem, init, stages[0][0] if stages else 1)
    for division, evaluations in stages:
        small = problem.ours(precision, "small", setting.range_weight, division)
        start = to_size(start, [edge // division for edge in problem.size])
        module = StyleTransfer(small, start, setting.lbfgs)
        _run(module, problem, evaluations, [])
        start = module.image.detach()
    before = time.perf_counter() - begin
    judge = Judge(exact, target)
    ranged = partial(problem.ours, range_weight=setting.range_weight)
    module = StyleTransfer(ranged(precision), start, setting.lbfgs)
    _run(module, problem, 2 * EVALUATIONS, [Refinement(lambda: ranged("float32")), judge])
    evaluations, spent, reached = judge.curve[-1]
    picture = to_picture(module.image)
    figures = {
        "seconds": before + spent,
        "evaluations": evaluations,
        "float32_evaluations": module.run.float32_evaluations,
        "loss": reached,
        "saved": _saved_loss(exact, picture),
    }
    return figures, picture


def _saved_loss(exact: Objective, picture: Image.Image) -> float:
    with torch.no_grad():
        image = to_tensor(picture).to(exact.features.get_buffer("mean"))
        return float(exact(image)["total"])


def _run(
    module: StyleTransfer, problem: Problem, evaluations: int, callbacks: list[pl.Callback]
) -> None:
    run(
        module,
        problem.device,
        data=itertools.repeat(0),
        precision="32-true",
        max_steps=evaluations,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
    )


def _write(pictures: list[Image.Image], path: Path) -> None:
    width, height = pictures[0].size
    row = Image.new("RGB", (width * len(pictures), height))
    for column, picture in enumerate(pictures):
        row.paste(picture, (column * width, 0))
    with replacing(path) as temporary:
        row.save(temporary, format="JPEG", quality=85)
