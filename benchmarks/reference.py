"""A plain PyTorch implementation of the method: the baseline of the speed benchmarks.

float32, autograd through every activation, torch's L-BFGS, no warm start.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.losses.feature_terms.style import gram_matrix
from pipeline.networks.vgg import Features
from pipeline.optim.lbfgs import LBFGS


class PlainObjective:
    """α·content + β·style, differentiated by autograd; arguments as ``Objective`` takes them."""

    def __init__(
        self,
        features: Features,
        content_image: Tensor,
        style_image: Tensor,
        content_layers: Mapping[str, float],
        style_layers: Mapping[str, float],
        content_weight: float,
        style_weight: float,
    ) -> None:
        self.features = features
        self.content_layers, self.style_layers = content_layers, style_layers
        self.content_weight, self.style_weight = content_weight, style_weight
        with torch.no_grad():
            self.contents = features(content_image, content_layers)
            styles = features(style_image, style_layers)
            self.grams = {name: gram_matrix(maps) for name, maps in styles.items()}

    def __call__(self, image: Tensor) -> Tensor:
        """Returns the total loss of a (1, 3, H, W) image."""
        maps = self.features(image, [*self.content_layers, *self.style_layers])
        total = image.new_zeros(())
        for name, weight in self.content_layers.items():
            loss = (maps[name] - self.contents[name]).square().mean()
            total = total + self.content_weight * weight * loss
        for name, weight in self.style_layers.items():
            loss = (gram_matrix(maps[name]) - self.grams[name]).square().mean()
            total = total + self.style_weight * weight * loss
        return total


def optimised(
    objective: PlainObjective, start: Tensor, evaluations: int, bound: bool = False
) -> Iterator[tuple[float, float, Tensor]]:
    """Yields loss and seconds of each evaluation, and the image after its step.

    The variable is scaled as the pipeline's is: at [0, 1] torch's first step would be lost in
    rounding. Tolerances are 0, so that nothing ends the run early.

    Args:
        bound: whether steps are bound in length, by the pipeline's L-BFGS in place of torch's with
            as long a history. From noise torch's second step leaves for good.
    """
    scale = 1 / (1e-3 * start.numel())
    pixels = ((start - 0.5) * scale).requires_grad_()
    optimizer: Any = (
        LBFGS(pixels, largest_step=0.1 * scale, history_size=100)
        if bound
        else torch.optim.LBFGS([pixels], max_iter=1, tolerance_grad=0, tolerance_change=0)
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(pixels / scale + 0.5)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    for _ in range(evaluations):
        begin = time.perf_counter()
        loss = optimizer.step(closure)
        spent = time.perf_counter() - begin
        yield float(loss.detach()), spent, (pixels / scale + 0.5).detach()
