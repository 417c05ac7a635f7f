"""Weight files: all published layouts give the same features, and bad files are refused."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import pytest
import torch
from conftest import torchvision_keys
from safetensors.torch import save, save_file
from torch import Tensor
from torchvision.models import VGG19_Weights

from pipeline.errors import UserError
from pipeline.networks.layers import LAYERS
from pipeline.networks.vgg import Features
from pipeline.networks.weight_files import (
    CAFFE_MEAN_BGR,
    imagenet_weights,
    load_backbone,
    load_weights,
    save_weights,
)

ALL = list(LAYERS)


def in_caffe_convention(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the network for BGR, 0–255, mean subtracted, under torchvision's keys."""
    keyed = torchvision_keys(weights)
    mean, std = weights["mean"], weights["std"]
    scaled = keyed["features.0.weight"] / (255 * std).view(1, 3, 1, 1)
    offset = torch.tensor(CAFFE_MEAN_BGR[::-1]) - 255 * mean
    bias = keyed["features.0.bias"] + (scaled * offset.view(1, 3, 1, 1)).sum(dim=(1, 2, 3))
    return {
        **keyed,
        "features.0.weight": scaled.flip(1).contiguous(),
        "features.0.bias": bias,
    }


def by_paper_names(keyed: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        f"{layer.name}.{kind}": keyed[f"features.{layer.number}.{kind}"]
        for layer in LAYERS.values()
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("keys", ["torchvision's", "the authors'"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_layouts_of_one_network_give_the_same_weights(
    keys: str, suffix: str, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    keyed = torchvision_keys(weights)
    saved = keyed if keys == "torchvision's" else by_paper_names(keyed)
    path = tmp_path / f"vgg{suffix}"
    save_file(saved, path) if suffix == ".safetensors" else torch.save(saved, path)
    loaded = load_weights(path, "torchvision")
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


@pytest.mark.parametrize("naming", [dict, by_paper_names])
def test_caffe_and_torchvision_conventions_give_the_same_features(
    naming: object, weights: dict[str, Tensor], images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    save_file(naming(in_caffe_convention(weights)), tmp_path / "caffe.safetensors")  # type: ignore[operator]
    caffe = load_weights(tmp_path / "caffe.safetensors", "caffe")
    features = Features(caffe, "avg")(images[0], ALL)
    expected = Features(weights, "avg")(images[0], ALL)
    inner = slice(1, -1)  # the two conventions pad the border with slightly different greys
    torch.testing.assert_close(
        features["conv1_1"][..., inner, inner], expected["conv1_1"][..., inner, inner]
    )
    for name in ALL:
        difference = (features[name] - expected[name]).norm() / expected[name].norm()
        assert difference < 0.01, name


def test_half_precision_files_become_float32(weights: dict[str, Tensor], tmp_path: Path) -> None:
    halves = {key: tensor.half() for key, tensor in torchvision_keys(weights).items()}
    save_file(halves, tmp_path / "half.safetensors")
    loaded = load_weights(tmp_path / "half.safetensors", "torchvision")
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file of weights"):
        load_weights(tmp_path / "none.pth", "torchvision")


def test_imagenet_weights_are_read_from_the_cache_of_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    cached = tmp_path / "hub/checkpoints" / Path(VGG19_Weights.IMAGENET1K_V1.url).name
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert imagenet_weights() == cached


def test_failed_download_of_imagenet_weights_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UserError, match=r"make repro WEIGHTS=/path/to/vgg19\.pth"):
        imagenet_weights()


def test_prepared_network_is_loaded_as_it_was_saved(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    save_weights(tmp_path / "b.safetensors", weights, pooling="max")
    loaded, pooling = load_backbone(tmp_path / "b.safetensors")
    assert pooling == "max"
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_damaged_prepared_network_is_named(tmp_path: Path) -> None:
    file = tmp_path / "b.safetensors"
    for content in (b"", save({"conv1_1.weight": torch.zeros(3)})):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged .* `dvc repro --force backbone`"):
            load_backbone(file)
