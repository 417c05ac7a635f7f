"""Measures of pictures against direct implementations of their definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import few_or_many_threads, save_picture
from PIL import Image
from scipy.stats import kurtosis
from torch import Tensor
from torch.nn.functional import conv2d

from pipeline.imaging.picture_files import read_picture
from pipeline.imaging.tensors import to_tensor
from pipeline.measures import colour, features, frame, structure, texture
from pipeline.measures.picture import measure
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.small_vgg import tapped
from pipeline.networks.vgg import Features
from pipeline.networks.weight_files import EMBEDDED, load_small, save_weights


def noise(seed: int, height: int = 192, width: int = 208) -> Tensor:
    """Returns a random image with structure of some pixels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, 3, height // 8, width // 8), generator=generator)
    fine = torch.rand((1, 3, height, width), generator=generator)
    enlarged = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return 0.8 * enlarged + 0.2 * fine


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    found = {}
    for seed, (name, size) in enumerate(
        {"content": (96, 128), "a": (200, 120), "b": (64, 64)}.items()
    ):
        pixels = noise(seed, *size)[0].permute(1, 2, 0).mul(255).round().byte().numpy()
        found[name] = folder / f"{name}.png"
        Image.fromarray(pixels).save(found[name])
    return found


def image(file: Path) -> Tensor:
    return to_tensor(read_picture(file))


def test_distances_by_the_network_are_relative_differences_of_features_and_gram_matrices() -> None:
    one, other = noise(1), noise(2)
    plain = Features({k: v.double() for k, v in tapped(load_small(EMBEDDED)).items()}, "avg")
    layers = [features.CONTENT_LAYER, *features.STYLE_LAYERS]
    with torch.no_grad():
        ours, theirs = (plain(each.double(), layers) for each in (one, other))

    def gram(maps: Tensor) -> Tensor:
        rows = maps[0].flatten(1)
        return rows @ rows.T / rows.shape[1]

    def relative(value: Tensor, reference: Tensor) -> float:
        return float((value - reference).norm() / reference.norm())

    network = features.embedded_network()
    pair = [features.describe(each, network) for each in (one, other)]
    content = relative(ours[features.CONTENT_LAYER], theirs[features.CONTENT_LAYER])
    styles = [relative(gram(ours[layer]), gram(theirs[layer])) for layer in features.STYLE_LAYERS]
    assert features.content_distance(*pair) == pytest.approx(content, rel=1e-4)
    assert features.style_distance(*pair) == pytest.approx(float(np.mean(styles)), rel=1e-4)


def test_structure_is_the_ssim_of_wang_et_al() -> None:
    one, other = noise(1), noise(1) * 0.7 + noise(2) * 0.3
    pair = [torch.from_numpy(structure.luminance(each))[None, None] for each in (one, other)]
    places = torch.arange(-5, 6, dtype=torch.float64)
    weights = torch.exp(-places.square() / (2 * 1.5**2))
    window = torch.outer(weights, weights)[None, None] / weights.sum().square()

    def mean(values: Tensor) -> Tensor:
        return conv2d(values, window)

    x, y = pair
    variances = [mean(each.square()) - mean(each).square() for each in pair]
    covariance = mean(x * y) - mean(x) * mean(y)
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean(x) * mean(y) + c1) * (2 * covariance + c2)
    denominator = (mean(x).square() + mean(y).square() + c1) * (variances[0] + variances[1] + c2)
    expected = float((numerator / denominator).mean())
    assert 0.1 < expected < 0.95
    assert structure.structural_similarity(one, other) == pytest.approx(expected, abs=1e-4)


def test_colour_histogram_is_that_of_histogan() -> None:
    """Bin by bin, as in equations 2 to 4 of the paper."""
    pixels = noise(3, colour.EDGE, colour.EDGE)
    rgb = pixels[0].double().flatten(1).numpy() + 0
    brightness = np.sqrt((rgb**2).sum(0) + 1e-6)
    logs = np.log(rgb + 1e-6)
    centres = np.linspace(-3, 3, 64)
    expected = np.zeros((3, 64, 64))
    for channel, (first, second) in enumerate([(1, 2), (0, 2), (0, 1)]):
        u, v = logs[channel] - logs[first], logs[channel] - logs[second]
        for i in range(64):
            near = brightness / (1 + ((u - centres[i]) / 0.02) ** 2)
            for j in range(0, 64, 7):
                expected[channel, i, j] = (near / (1 + ((v - centres[j]) / 0.02) ** 2)).sum()
    ours = colour.colour_histogram(pixels).numpy()
    shares = ours[:, :, ::7] / ours[:, :, ::7].sum()
    np.testing.assert_allclose(shares, expected[:, :, ::7] / expected.sum(), rtol=1e-4)
    assert ours.sum() == pytest.approx(1, rel=1e-4)


def test_colour_distance_is_between_the_same_and_nothing_in_common() -> None:
    red, blue = (torch.zeros(1, 3, 20, 20) for _ in range(2))
    red[:, 0], blue[:, 2] = 1, 1
    histograms = [colour.colour_histogram(each) for each in (red, red.clone(), blue)]
    assert colour.colour_distance(*histograms[:2]) == 0
    assert 0.9 < colour.colour_distance(histograms[0], histograms[2]) <= 1


def test_texture_statistics_have_the_moments_of_the_luminance() -> None:
    picture = noise(4)
    grey = structure.luminance(picture).ravel()
    values = texture.texture_statistics(picture)["pixel_statistics"]
    expected = [grey.mean(), grey.var(), None, kurtosis(grey, fisher=False), grey.min(), grey.max()]
    for value, wanted in zip(values.tolist(), expected, strict=True):
        if wanted is not None:
            assert value == pytest.approx(wanted, rel=1e-4)


def test_texture_distance_is_the_mean_over_the_kinds() -> None:
    one = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0])}
    other = {"a": torch.tensor([0.0, 0.0]), "b": torch.tensor([0.6])}
    assert texture.texture_distance(one, other) == pytest.approx((1 + 0.4 / 1.6) / 2)
    assert texture.texture_distance(one, one) == 0


@pytest.mark.parametrize(
    ("size", "measured"),
    [
        ((192, 256), (192, 256)),
        ((300, 451), (192, 288)),
        ((451, 300), (288, 192)),
        ((20, 20), (192, 192)),
        ((16, 4000), (192, 768)),
        ((1, 1), (192, 192)),
    ],
)
def test_pictures_of_every_size_are_measured_at_one(
    size: tuple[int, int], measured: tuple[int, int]
) -> None:
    assert frame.framed(torch.rand(1, 3, *size)).shape[-2:] == measured


def test_middle_of_a_long_picture_is_measured() -> None:
    picture = torch.zeros(1, 3, 192, 1600)
    picture[..., 416:1184] = 1
    assert frame.framed(picture).min() == 1


def test_the_same_picture_has_no_distance(files: dict[str, Path]) -> None:
    same = measure(image(files["content"]), files["content"], {files["content"]: 1.0})
    assert same.pop("structure") == pytest.approx(1, abs=1e-6)
    assert set(same.values()) == {0.0}


def test_vgg19_adds_two_distances_by_its_own_features(
    files: dict[str, Path], weights: dict[str, Tensor], tmp_path: Path
) -> None:
    network = tmp_path / "network.safetensors"
    save_weights(network, weights, pooling="max")
    arguments = noise(9), files["content"], {files["a"]: 2.0, files["b"]: 1.0}
    measures, plain = measure(*arguments, network), measure(*arguments)
    added = {name: measures.pop(name) for name in list(measures) if name.endswith("_vgg19")}
    assert measures == plain
    features_of = FrozenFeatures(weights, "max")
    own, a, b = (
        features.describe(frame.framed(each), features_of)
        for each in (noise(9), image(files["a"]), image(files["b"]))
    )
    style = (2 * features.style_distance(own, a) + features.style_distance(own, b)) / 3
    assert added["style_distance_vgg19"] == pytest.approx(style, rel=1e-5)
    assert added["content_distance_vgg19"] > 0
    assert list(added) == ["content_distance_vgg19", "style_distance_vgg19"]


def test_distances_of_several_styles_are_their_weighted_mean(files: dict[str, Path]) -> None:
    result, styles = noise(9, 120, 160), (files["a"], files["b"])
    alone = [measure(result, files["content"], {style: 5.0}) for style in styles]
    both = measure(result, files["content"], dict(zip(styles, (3.0, 1.0), strict=True)))
    for name, value in both.items():
        expected = 0.75 * alone[0][name] + 0.25 * alone[1][name]
        assert value == pytest.approx(expected, rel=1e-5), name
    assert alone[0]["style_distance"] != alone[1]["style_distance"]


def test_measures_are_the_same_for_any_number_of_threads(files: dict[str, Path]) -> None:
    seen, result = set(), noise(9)
    for threads in few_or_many_threads():
        torch.set_num_threads(threads)
        seen.add(str(measure(result, files["content"], {files["a"]: 1.0})))
        assert torch.get_num_threads() == threads
    assert len(seen) == 1


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (16, 900), (600, 20)])
@pytest.mark.parametrize("level", [0.0, 1.0, None])
def test_small_and_blank_pictures_have_finite_measures(
    size: tuple[int, int], level: float | None, tmp_path: Path
) -> None:
    content = save_picture(tmp_path / "content.png", size=size[::-1])
    result = torch.rand(1, 3, *size) if level is None else torch.full((1, 3, *size), level)
    assert all(np.isfinite(value) for value in measure(result, content, {content: 1.0}).values())
