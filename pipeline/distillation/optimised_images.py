"""Training images that come from style transfers by the student itself.

L-BFGS drives an image to where the network is wrong, so these images are where the student has
most to learn from VGG-19.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from pipeline.distillation.crops import CropSampler
from pipeline.losses.style import gram_matrix
from pipeline.networks.small_vgg import tapped
from pipeline.networks.vgg import Features
from pipeline.optim.image_variable import to_image, to_variable, variable_scale
from pipeline.optim.lbfgs import LBFGS

BATCH = 8
"""How many style transfers are optimised together, as one problem."""
SNAPSHOTS = (0.2, 0.5, 1.0)
"""Fractions of an optimisation's steps after which its images are returned."""
FIRST_STEP, LARGEST_STEP = 1e-3, 0.1
"""Mean distances that the first step moves a pixel, and that any step may; RGB in [0, 1]."""
CONTENT_LAYER = "conv4_2"
STYLE_LAYERS = ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1")


def optimised_images(
    weights: Mapping[str, Tensor], means: Mapping[str, Tensor], sampler: CropSampler
) -> list[Tensor]:
    """Returns the images of eight style transfers by the student, after each of ``SNAPSHOTS``.

    They are (8, 3, S, S) float32, RGB, not clamped; those with NaN or infinity are left out.
    ``sampler`` and its generator draw content, style, start and loss weights of each, and whether
    the network is rescaled by ``means``, {layer: (N,)} mean activations of VGG-19's filters. The
    sum of all losses is minimised. Each is divided by the squared norm of its target, so that none
    dominates.
    """
    random = sampler.random
    network = Features(tapped(weights, means if random.random() < 0.5 else None), "avg")
    device = weights["mean"].device
    content_images = sampler.crops(BATCH).to(device)
    style_images = sampler.crops(BATCH).to(device)
    ranges = [(1e-3, 1.0)] + [(0.3, 3.0)] * len(STYLE_LAYERS)
    draws = [np.exp(random.uniform(np.log(low), np.log(high), BATCH)) for low, high in ranges]
    loss_weights = [torch.from_numpy(each).float().to(device) for each in draws]
    with torch.no_grad():
        contents, styles = (_statistics(network, each) for each in (content_images, style_images))
        targets = [contents[0], *styles[1:]]

    def loss(images: Tensor) -> Tensor:
        terms = zip(loss_weights, _statistics(network, images), targets, strict=True)
        errors = [w @ _relative_errors(value, target) for w, value, target in terms]
        return torch.stack(errors).sum()

    start = content_images.clone()
    for index in range(BATCH):
        kind = random.random()
        if kind < 0.4:
            start[index] = torch.from_numpy(sampler.noise())
        elif kind < 0.5:
            start[index] = style_images[index]
    return _minimise(loss, start, steps=int(random.choice([20, 40, 80])))


def _statistics(network: Features, images: Tensor) -> list[Tensor]:
    """Returns the features of the content layer and the Gram matrices of the style layers."""
    features = network(images, [CONTENT_LAYER, *STYLE_LAYERS])
    batches = [torch.split(features[name], 1) for name in STYLE_LAYERS]
    return [features[CONTENT_LAYER], *(torch.stack([*map(gram_matrix, b)]) for b in batches)]


def _relative_errors(values: Tensor, targets: Tensor) -> Tensor:
    """Returns the (B,) squared norms of the differences over those of the targets."""
    squares = (values - targets).square().flatten(1).sum(1)
    return squares / targets.square().flatten(1).sum(1)


def _minimise(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> list[Tensor]:
    """Returns the images of an L-BFGS run after each of ``SNAPSHOTS``, where they are finite."""
    scale = variable_scale(start, FIRST_STEP)
    variable = to_variable(start, scale).requires_grad_()
    optimizer = LBFGS(variable, LARGEST_STEP * scale, history_size=10)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(to_image(variable, scale))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    snapshots = []
    for step in range(1, steps + 1):
        optimizer.step(closure)
        if step in [round(fraction * steps) for fraction in SNAPSHOTS]:
            snapshots.append(to_image(variable.detach(), scale))
    return [images for images in snapshots if images.isfinite().all()]
