"""The network against torchvision's, and the rescaling against what it promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import torchvision_keys
from torch import Tensor
from torchvision.models import vgg as torchvisions

from pipeline.errors import UserError
from pipeline.networks import vgg
from pipeline.networks.layers import LAYERS
from pipeline.networks.rescaling import rescale, rescaling_means
from pipeline.networks.vgg import Features, down_to, layers_of

ALL = list(LAYERS)


def test_features_are_those_of_torchvisions_network(
    weights: dict[str, Tensor], images: tuple[Tensor, Tensor]
) -> None:
    network = torchvisions.make_layers(torchvisions.cfgs["E"])[:-1]  # without the last pooling
    keyed = torchvision_keys(weights)
    network.load_state_dict({key.removeprefix("features."): keyed[key] for key in keyed})
    x = (images[0] - weights["mean"].view(1, 3, 1, 1)) / weights["std"].view(1, 3, 1, 1)
    expected = {}
    with torch.no_grad():
        for number, part in enumerate(network):
            x = part(x)
            for layer in LAYERS.values():
                if number == layer.number + 1:  # the ReLU after the convolution
                    expected[layer.name] = x.clone()
    found = Features(weights, "max")(images[0], ALL)
    assert list(found) == ALL
    for name in ALL:
        torch.testing.assert_close(found[name], expected[name])


def test_average_pooling_differs_from_max_after_the_first_block_only(
    weights: dict[str, Tensor], images: tuple[Tensor, Tensor]
) -> None:
    average, maximum = (Features(weights, p)(images[0], ALL) for p in ("avg", "max"))
    assert torch.equal(average["conv1_2"], maximum["conv1_2"])
    assert not torch.allclose(average["conv2_1"], maximum["conv2_1"])


def test_nothing_deeper_than_the_deepest_layer_is_computed(
    weights: dict[str, Tensor], images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    convolution = torch.nn.functional.conv2d
    monkeypatch.setattr(
        vgg.functional, "conv2d", lambda *a, **k: calls.append(1) or convolution(*a, **k)
    )
    Features(weights, "avg")(images[0], ["conv3_1", "conv1_2"])
    assert len(calls) == ALL.index("conv3_1") + 1


def test_network_has_no_parameters_and_saves_nothing(weights: dict[str, Tensor]) -> None:
    features = Features(weights, "avg")
    assert list(features.parameters()) == []
    assert features.state_dict() == {}


def test_image_too_small_for_a_layer_is_refused(weights: dict[str, Tensor]) -> None:
    features = Features(weights, "avg")
    image = torch.zeros(1, 3, 12, 300)
    with pytest.raises(UserError, match=r"image is 12x300 pixels; conv5_1 needs at least 16x16"):
        features(image, ["conv5_1"])
    assert features(image, ["conv4_1"])["conv4_1"].shape == (1, 512, 1, 37)


def test_unknown_layer_names_the_nearest(weights: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match=r"'conv4_5'. Did you mean 'conv4_4'\?|'conv5_4'"):
        Features(weights, "avg")(torch.zeros(1, 3, 32, 32), ["conv4_5"])


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_rescaled_filters_have_mean_activation_one(
    pooling: str, weights: dict[str, Tensor], images: tuple[Tensor, Tensor]
) -> None:
    means, dead = rescaling_means(Features(weights, pooling), images)
    rescaled = Features(rescale(weights, means), pooling)
    found = [rescaled(image, ALL) for image in images]
    for name in ALL:
        mean = torch.stack([f[name] for f in found]).mean(dim=(0, 1, 3, 4))
        alive = [i for i in range(len(mean)) if i not in dead.get(name, [])]
        torch.testing.assert_close(mean[alive], torch.ones(len(alive)), rtol=2e-3, atol=0)
        assert (mean[dead.get(name, [])] < 1).all()


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_rescaling_changes_activations_by_the_filters_factors_only(
    pooling: str, weights: dict[str, Tensor], images: tuple[Tensor, Tensor]
) -> None:
    means, _ = rescaling_means(Features(weights, pooling), images)
    unseen = torch.rand((1, 3, 32, 48), generator=torch.Generator().manual_seed(9))
    before = Features(weights, pooling)(unseen, ALL)
    after = Features(rescale(weights, means), pooling)(unseen, ALL)
    for name in ALL:
        restored = after[name] * means[name].view(1, -1, 1, 1)
        torch.testing.assert_close(restored, before[name], rtol=1e-3, atol=1e-4)


def test_dead_filter_gets_the_median_and_stays_weak(
    weights: dict[str, Tensor], images: tuple[Tensor, Tensor]
) -> None:
    dying = dict(weights)
    dying["conv2_1.weight"], dying["conv2_1.bias"] = (
        weights["conv2_1.weight"].clone(),
        weights["conv2_1.bias"].clone(),
    )
    dying["conv2_1.weight"][7] = 0
    dying["conv2_1.bias"][7] = 1e-5
    means, dead = rescaling_means(Features(dying, "avg"), images)
    assert 7 in dead["conv2_1"]
    others = torch.cat([means["conv2_1"][:7], means["conv2_1"][8:]])
    assert others.min() < means["conv2_1"][7] < others.max()
    after = Features(rescale(dying, means), "avg")(images[0], ["conv2_1"])["conv2_1"]
    assert after[0, 7].max() < 1e-3


def test_layer_without_any_activity_is_left_finite(
    images: tuple[Tensor, Tensor], weights: dict[str, Tensor]
) -> None:
    silent = {**weights, "conv1_1.weight": weights["conv1_1.weight"] * 0}
    silent["conv1_1.bias"] = weights["conv1_1.bias"] * 0
    means, dead = rescaling_means(Features(silent, "avg"), images)
    assert all(tensor.isfinite().all() for tensor in rescale(silent, means).values())
    assert dead["conv1_1"] == list(range(64))


SHARED_WEIGHTS = Path(__file__).resolve().parents[3] / "shared/weights/vgg19_conv.safetensors"


@pytest.mark.skipif(not SHARED_WEIGHTS.is_file(), reason="VGG-19's weights are not on this machine")
def test_real_network_tells_a_cat_from_its_mirror_less_than_from_gravel() -> None:
    from importlib.util import find_spec

    from pipeline.imaging.picture_files import read_picture
    from pipeline.imaging.tensors import resize, to_tensor
    from pipeline.networks.weight_files import load_weights

    root = Path(find_spec("skimage").submodule_search_locations[0]) / "data"
    cat, gravel = (
        resize(to_tensor(read_picture(root / name)), (96, 128), "bicubic", antialias=True)
        for name in ("chelsea.png", "gravel.png")
    )
    features = Features(load_weights(SHARED_WEIGHTS, "torchvision"), "avg")
    mean = [
        features(x, ["conv5_1"])["conv5_1"].mean(dim=(2, 3)) for x in (cat, cat.flip(3), gravel)
    ]
    same, other = (torch.cosine_similarity(mean[0], mean[i]).item() for i in (1, 2))
    assert same > 0.9 > other


def test_network_down_to_a_layer_has_the_same_features_there(weights: dict[str, Tensor]) -> None:
    image = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    shorter = down_to(weights, ["conv2_1", "conv1_2"])
    assert layers_of(shorter) == ("conv1_1", "conv1_2", "conv2_1")
    expected = Features(weights, "avg")(image, ["conv2_1"])
    assert torch.equal(Features(shorter, "avg")(image, ["conv2_1"])["conv2_1"], expected["conv2_1"])
    assert layers_of(down_to(weights, [])) == layers_of(weights)
    with pytest.raises(UserError, match="conv9_9"):
        down_to(weights, ["conv9_9"])
