"""Two regions in two styles, by the embedded network: each gets its own style and not the other."""

from __future__ import annotations

import torch
from conftest import REPOSITORY
from torch import Tensor

from pipeline.imaging.picture_files import read_picture
from pipeline.imaging.tensors import resize, to_tensor, white_noise
from pipeline.losses import make_terms
from pipeline.losses.objective import MINIMISED, Objective
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.layers import Context
from pipeline.networks.small_vgg import tapped
from pipeline.networks.weight_files import EMBEDDED, load_small
from pipeline.optim.lbfgs import LBFGS

SIZE = HEIGHT, WIDTH = 48, 80
LAYERS = ["conv1_1", "conv2_1", "conv3_1"]
"""Deeper layers see, from every position of so small an image, both regions."""
MARGIN = 8
"""Pixels between an interior and the border of its region."""
EVALUATIONS = 30
STYLES = "glass", "brushwork"


def painting(name: str) -> Tensor:
    image = to_tensor(read_picture(REPOSITORY / f"data/paintings/{name}.jpg"))
    return resize(image, SIZE, "bicubic", antialias=True)


def half(side: int, margin: int = 0) -> Tensor:
    """Returns a mask of the left or the right half, without a margin beside the middle."""
    mask = torch.zeros((1, 1, HEIGHT, WIDTH))
    mask[..., : WIDTH // 2 - margin] = 1
    return mask if side == 0 else mask.flip(3)


def transferred(features: FrozenFeatures, style: object, images: dict[str, Tensor]) -> Tensor:
    settings = {
        "content_layers": {},
        "content_weight": 0.0,
        "style_layers": LAYERS,
        "style_weight": 1.0,
        "range_weight": 1000.0,
        "style": style,
    }
    images = {"content": painting(STYLES[0]), **images}
    objective = Objective(features, make_terms(settings), images)
    image = white_noise(SIZE, seed=0, level=0.1).requires_grad_()
    optimizer = LBFGS(image, history_size=20, scaling="mean", largest_step=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(image)[MINIMISED]
        loss.backward()
        return loss

    for _ in range(EVALUATIONS):
        optimizer.step(closure)
    return image.detach()


def test_each_region_has_its_own_style_and_not_the_other() -> None:
    features = FrozenFeatures(tapped(load_small(EMBEDDED)), "avg")
    paintings = [painting(name) for name in STYLES]
    targets = [features(image, {"gram_matrix": LAYERS})["gram_matrix"] for image in paintings]

    def distance(image: Tensor, side: int, style: int) -> float:
        """Returns the mean over layers of the relative distance of Gram matrices."""
        grams = features(
            image, {"gram_matrix@inside": LAYERS}, Context({"inside": half(side, MARGIN)})
        )
        pairs = [(grams["gram_matrix@inside"][layer], targets[style][layer]) for layer in LAYERS]
        distances = [(gram - goal).square().sum() / goal.square().sum() for gram, goal in pairs]
        return float(torch.stack(distances).mean())

    styles = [{"image": name, "content_mask": "mask"} for name in STYLES]
    images = {f"style_{side + 1}": paintings[side] for side in (0, 1)}
    images |= {f"style_{side + 1}_content_mask": half(side) for side in (0, 1)}
    image = transferred(features, styles, images)
    for side in (0, 1):
        alone = transferred(features, STYLES[side], {"style": paintings[side]})
        own = distance(image, side, side)
        assert own <= 1.1 * distance(alone, side, side)
        assert distance(image, side, 1 - side) >= 5 * own
