"""Counts the evaluations that L-BFGS's ``scaling: mean`` needs to reach the loss of ``newest``."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.embedded_network import FOLDER, PAIRS, image_of, objective, optimised
from pipeline.imaging.tensors import white_noise
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.small_vgg import tapped
from pipeline.networks.weight_files import EMBEDDED, load_small
from pipeline.optim.lbfgs import Scaling

EVALUATIONS = 200, 400
"""Evaluations of ``newest`` whose loss is to be reached."""
SIZE, LEVEL = 256, 0.1
"""Long edge in pixels; level of the noise that the second run of each pair starts from."""


def scaling(_: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs both scalings on the pairs of ``embedded_network``, by the small network in float32."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    small = FrozenFeatures(tapped(load_small(EMBEDDED)), "avg", device=device)
    rows = []
    for pair, names in PAIRS.items():
        content, style = (image_of(name, SIZE).to(device) for name in names)
        problem = objective(small, content, style)
        height, width = content.shape[-2:]
        noise = white_noise((height, width), 0, LEVEL).to(device)
        for init, start in (("content", content), ("noise", noise)):
            losses: dict[Scaling, list[float]] = {}
            for kind in ("newest", "mean"):
                folder = FOLDER / f"scaling-{kind}"
                losses[kind] = optimised(problem, start, max(EVALUATIONS), folder, kind)[1]
            reached = {
                str(count): _reached(losses["mean"], min(losses["newest"][:count]))
                for count in EVALUATIONS
            }
            rows.append({"pair": pair, "init": init, "evaluations": reached})
            print(rows[-1], flush=True)
    return rows


def _reached(losses: list[float], target: float) -> int | None:
    return next((count for count, loss in enumerate(losses, 1) if loss <= target), None)
