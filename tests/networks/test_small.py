"""The small network: its taps have VGG-19's losses, its file and its layers are checked."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import skimage.data
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.distillation.student import Student
from pipeline.errors import UserError
from pipeline.losses import make_terms
from pipeline.losses.feature_terms.content import squared_distance
from pipeline.losses.feature_terms.style import gram_matrix
from pipeline.losses.term import LossConvention
from pipeline.networks.layers import ARCHITECTURES, LAYERS
from pipeline.networks.rescaling import rescaling_means
from pipeline.networks.small_vgg import predicting, square_root, tapped
from pipeline.networks.vgg import Features
from pipeline.networks.weight_files import EMBEDDED, load_small, load_weights, save_small

SMALL = ARCHITECTURES["vgg19-small"]
WIDTHS = (4, 6, 8, 10, 12)


@pytest.fixture(scope="module")
def small() -> dict[str, Tensor]:
    """A student as it is before it learned anything."""
    return Student(WIDTHS, dict.fromkeys(SMALL, 2.0), seed=0).weights()


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("convention", get_args(LossConvention))
def test_losses_of_the_taps_are_those_of_the_predictions(
    convention: str, rescaled: bool, small: dict[str, Tensor], images: tuple[Tensor, Tensor]
) -> None:
    predictions, means = Features(predicting(small), "avg"), None
    if rescaled:
        generator = torch.Generator().manual_seed(0)
        means = {
            name: torch.rand(LAYERS[name].channels_out, generator=generator) + 0.5 for name in SMALL
        }
    taps = Features(tapped(small, means), "avg")
    settings = {"style_layers": [], "content_weight": 1.0, "style_weight": 1.0}
    content, style, *_ = make_terms(settings | {"convention": convention})
    for name in SMALL:
        filters = LAYERS[name].channels_out
        wide = [predictions(image, [name])[name] for image in images]
        if means is not None:
            wide = [maps / means[name].view(1, -1, 1, 1) for maps in wide]
        narrow = [taps(image, [name])[name] for image in images]
        assert wide[0].shape[1] == filters
        assert narrow[0].shape[1] == WIDTHS[LAYERS[name].block - 1]
        for loss, arguments in (
            (content.loss, ((squared_distance(*pair), pair[1]) for pair in (wide, narrow))),
            (style.loss, ([gram_matrix(maps) for maps in pair] for pair in (wide, narrow))),
        ):
            expected, tapped_loss = (loss(*pair, filters) for pair in arguments)
            torch.testing.assert_close(tapped_loss, expected, rtol=1e-3, atol=0)


def test_square_root_squared_is_the_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    thin = torch.randn((3, 8), generator=generator)
    root = square_root(thin.T @ thin)  # of rank 3
    torch.testing.assert_close(root, root.T)
    torch.testing.assert_close(root @ root, thin.T @ thin, rtol=1e-4, atol=1e-5)


def test_predictions_are_averaged_for_the_rescaling(
    small: dict[str, Tensor], images: tuple[Tensor, Tensor]
) -> None:
    means, _ = rescaling_means(Features(predicting(small), "avg"), images)
    assert list(means) == list(SMALL)
    assert all(len(mean) == LAYERS[name].channels_out for name, mean in means.items())


def test_missing_layer_is_named_with_those_there_are(
    small: dict[str, Tensor], images: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(
        UserError, match=r"this network has no layer conv3_4. The layers are conv1_1, conv1_2"
    ):
        Features(tapped(small), "avg")(images[0], ["conv3_4"])


def test_file_holds_the_network(small: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_small(path, small)
    found = load_small(path)
    assert set(found) == set(small)
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, small[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("conv4_1.head"), r"has no conv4_1.head: it is not a vgg19-small"),
        (lambda w: w.update({"conv2_1.bias": torch.ones(5)}), r"weight of conv2_1 is \(6,"),
        (lambda w: w.update({"conv2_2.weight": torch.ones(6, 7, 3, 3)}), r"weight of conv2_2 is"),
        (lambda w: w["conv5_2.head"].fill_(float("nan")), r"head of conv5_2 holds NaN"),
    ],
)
def test_file_of_something_else_is_refused(
    change: object, message: str, small: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "small.safetensors"
    weights = {name: tensor.clone() for name, tensor in small.items()}
    change(weights)  # type: ignore[operator]
    save_file(weights, path)
    with pytest.raises(UserError, match=message):
        load_small(path)


def test_file_of_vgg19_names_the_setting(weights_file: Path) -> None:
    with pytest.raises(UserError, match=r"For a file of VGG-19 set backbone.architecture: vgg19"):
        load_small(weights_file)


def test_file_of_a_small_network_where_vgg19_is_asked_for_names_the_setting() -> None:
    with pytest.raises(UserError, match=r"Set backbone\.architecture: vgg19-small"):
        load_weights(EMBEDDED, "torchvision")


def test_embedded_network_is_small_enough_to_come_along() -> None:
    assert EMBEDDED.stat().st_size <= 4 * 2**20
    stored = load_file(EMBEDDED)
    assert all(tensor.dtype == torch.float16 for tensor in stored.values() if tensor.dim() > 1)
    assert load_small(EMBEDDED).keys() == stored.keys()


@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("layer", ["conv3_1", "conv4_1"])
def test_embedded_network_tells_a_texture_from_another(layer: str, pooling: str) -> None:
    """Two crops of one texture are much more alike than crops of two."""
    crops = [
        texture[top : top + 192, :192].float().div(255).expand(1, 3, 192, 192)
        for texture in map(torch.from_numpy, (skimage.data.gravel(), skimage.data.grass()))
        for top in (0, 320)
    ]
    features = Features(tapped(load_small(EMBEDDED)), pooling)
    grams = [gram_matrix(features(crop, [layer])[layer]) for crop in crops]
    gravel, other_gravel, grass, other_grass = (gram / gram.norm() for gram in grams)
    within = max((gravel - other_gravel).norm(), (grass - other_grass).norm())
    assert 2 * within < min((gravel - grass).norm(), (other_gravel - other_grass).norm())
