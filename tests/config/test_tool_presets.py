"""A preset has the losses of its tool, written out here from the tool's source, term by term.

``docs/presets.md`` names the lines of the sources.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import REPOSITORY
from torch import Tensor
from torch.nn import functional
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.config.edits.presets import values_of, write_values
from pipeline.config.edits.tool_presets import TOOLS, preset, preset_contradictions
from pipeline.config.params import read_params
from pipeline.config.schema import Experiment
from pipeline.errors import UserError
from pipeline.imaging.tensors import white_noise
from pipeline.losses.objective import Objective
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.layers import LAYERS
from pipeline.networks.settings import Backbone
from pipeline.networks.vgg import down_to
from pipeline.networks.weight_files import load_weights

SHIPPED = REPOSITORY / "params.yaml"
STYLE = ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1")
MEAN_BGR = (103.939, 116.779, 123.68)
Terms = dict[str, Tensor]


def experiment(name: str) -> Experiment:
    return Experiment.model_validate(preset(name)["defaults"] | {"content": "a", "style": "b"})


def picture(size: tuple[int, int], seed: int) -> Tensor:
    """Returns a (1, 3, H, W) float64 image of coarse blobs in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    blobs = torch.rand((1, 3, 5, 7), generator=generator, dtype=torch.float64)
    return functional.interpolate(blobs, size=size, mode="bilinear") ** (1 + seed)


CONTENT, STYLE_IMAGE, OTHER = picture((19, 33), 0), picture((37, 17), 1), picture((19, 33), 2)


@pytest.fixture(scope="module")
def file_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in weights.items()}


def activations(weights: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """Returns each layer's activations of an input that is already normalised."""
    maps, block = {}, 1
    for name, layer in LAYERS.items():
        if layer.block != block:
            x, block = functional.max_pool2d(x, 2), layer.block
        x = functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)
        maps[name] = x = x.clamp(min=0)
        if name == STYLE[-1]:
            break
    return maps


def bgr(image: Tensor, white: float) -> Tensor:
    """Returns what an original VGG-19 sees: BGR, 0 to white, mean subtracted."""
    return image.flip(1) * white - torch.tensor(MEAN_BGR, dtype=torch.float64).view(1, 3, 1, 1)


def gram(x: Tensor) -> Tensor:
    return torch.einsum("xchw,xdhw->cd", x, x)


def authors(weights: dict[str, Tensor], image: Tensor) -> Terms:
    """NeuralStyleTransfer.ipynb; NeuralImageSynthesis has the same (LossLayers.lua)."""
    x, content, style = (
        activations(weights, bgr(each, 255)) for each in (image, CONTENT, STYLE_IMAGE)
    )
    terms: Terms = {"content": functional.mse_loss(x["conv4_2"], content["conv4_2"])}
    terms["style"] = torch.zeros((), dtype=torch.float64)
    for layer, n in zip(STYLE, (64, 128, 256, 512, 512), strict=True):
        matrices = [gram(each[layer]) / each[layer][0, 0].numel() for each in (x, style)]
        terms["style"] += 1e3 / n**2 * functional.mse_loss(*matrices)
    return terms


def johnson(weights: dict[str, Tensor], image: Tensor, white: float = 256) -> Terms:
    """neural_style.lua: Gram matrices over all elements, and no value for the variation."""
    x, content, style = (
        activations(weights, bgr(each, white)) for each in (image, CONTENT, STYLE_IMAGE)
    )
    matrices = ([gram(each[layer]) / each[layer].numel() for each in (x, style)] for layer in STYLE)
    return {
        "content": 5e0 * functional.mse_loss(x["conv4_2"], content["conv4_2"]),
        "style": sum(
            (1e2 * functional.mse_loss(*pair) for pair in matrices), torch.zeros(()).double()
        ),
    }


def neural_style_pt(weights: dict[str, Tensor], image: Tensor) -> Terms:
    x = bgr(image, 255)
    down, across = (x[:, :, 1:] - x[:, :, :-1]).abs().sum(), x.diff(dim=3).abs().sum()
    return {**johnson(weights, image, 255), "variation": 1e-3 * (down + across)}


def newton_schulz(matrix: Tensor) -> Tensor:
    norm, identity = matrix.pow(2).sum().sqrt(), torch.eye(len(matrix), dtype=matrix.dtype)
    y, z = matrix / norm, identity
    for _ in range(12):
        t = (identity * 3 - z @ y) / 2
        y, z = y @ t, t @ z
    return y * norm.sqrt()


def crowson(weights: dict[str, Tensor], image: Tensor) -> Terms:
    """style_transfer.py: StyleLossW2, ContentLossMSE, TVLoss; zeros around the image."""
    mean, std = (
        torch.tensor(each, dtype=torch.float64).view(1, 3, 1, 1)
        for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    x, content, style = (
        activations(weights, (each - mean) / std) for each in (image, CONTENT, STYLE_IMAGE)
    )
    style_loss = torch.zeros((), dtype=torch.float64)
    for layer, weight in zip(STYLE, (256, 64, 16, 4, 1), strict=True):
        means, covariances = [], []
        for maps in (x[layer], style[layer]):
            mu = maps.mean((2, 3))[0]
            means.append(mu)
            covariance = gram(maps) / maps[0, 0].numel() - torch.outer(mu, mu)
            covariances.append(covariance + 1e-4 * torch.eye(len(mu)))
        root = newton_schulz(covariances[1])
        both = newton_schulz(root @ covariances[0] @ root)
        difference = (covariances[1] + covariances[0] - 2 * both).diagonal().mean()
        style_loss += weight / 341 * (functional.mse_loss(*means) + difference)
    p = functional.pad(image, (1, 1, 1, 1), "replicate")
    d1 = (p[..., 1:-1, 2:] - p[..., 1:-1, 1:-1]).pow(2).mean() / 3
    d2 = (p[..., 2:, 1:-1] - p[..., 1:-1, 1:-1]).pow(2).mean() / 3
    d3 = (p[..., 1:, 1:] - p[..., :-1, :-1]).pow(2).mean() / 12
    d4 = (p[..., 1:, :-1] - p[..., :-1, 1:]).pow(2).mean() / 12
    return {
        "content": 0.015 * functional.mse_loss(x["conv4_2"], content["conv4_2"]),
        "wasserstein": style_loss,
        "variation": 2.0 * 2 * (d1 + d2 + d3 + d4),
    }


def spst(weights: dict[str, Tensor], image: Tensor) -> Terms:
    """vgg_by_blocks.py: the authors' losses, and those of means and standard deviations."""
    x, style = (activations(weights, bgr(each, 255)) for each in (image, STYLE_IMAGE))
    moments = torch.zeros((), dtype=torch.float64)
    for layer, n in zip(STYLE, (64, 128, 256, 512, 512), strict=True):
        weight = (1e3 / n**2) * n**2 * 1000 / 100
        means = [each[layer].mean((2, 3)) for each in (x, style)]
        deviations = [
            ((gram(each[layer]) / each[layer][0, 0].numel()).diagonal() - mu**2).sqrt()
            for each, mu in zip((x, style), means, strict=True)
        ]
        moments += weight * (functional.mse_loss(*means) + functional.mse_loss(*deviations))
    return {**authors(weights, image), "moments": moments}


FORMULAS: dict[str, Callable[[dict[str, Tensor], Tensor], Terms]] = {
    "gatys-notebook": authors,
    "gatys-2017": authors,
    "neural-style": johnson,
    "neural-style-pt": neural_style_pt,
    "crowson": crowson,
    "spst": spst,
}


def objective_of_preset(name: str, weights_file: Path) -> Objective:
    backbone = preset(name)["backbone"]
    loaded = load_weights(weights_file, backbone["convention"])
    doubles = {key: tensor.double() for key, tensor in down_to(loaded, STYLE).items()}
    features = FrozenFeatures(doubles, backbone["pooling"])
    images = {"content": CONTENT, "style": STYLE_IMAGE}
    return Objective(features, experiment(name).terms(), images)


def start_of(name: str) -> Tensor:
    settings = experiment(name)
    if settings.init == "content":
        return CONTENT
    return white_noise((19, 33), settings.seed, settings.noise_level).double()


@pytest.mark.parametrize("name", TOOLS)
def test_losses_at_the_start_and_elsewhere_are_those_of_the_tool(
    name: str, weights_file: Path, file_weights: dict[str, Tensor]
) -> None:
    objective = objective_of_preset(name, weights_file)
    for image in (start_of(name), OTHER):
        with torch.no_grad():
            losses = objective(image)
            expected = FORMULAS[name](file_weights, image)
        for term, value in expected.items():
            assert losses[term].item() == pytest.approx(value.item(), rel=1e-6, abs=1e-12), term
        total = sum(value.item() for value in expected.values())
        if name == "neural-style":  # whose loss does not contain its variation
            total += losses["variation"].item()
        assert losses["total"].item() == pytest.approx(total, rel=1e-6)


def test_neural_style_adds_the_tools_gradient_of_the_variation(weights_file: Path) -> None:
    """Its source has no loss of the variation, only this gradient."""
    objective = objective_of_preset("neural-style", weights_file)
    image = OTHER.clone().requires_grad_()
    objective(image)["variation"].backward()
    x = bgr(OTHER, 256)[0]
    gradient = torch.zeros_like(x)
    x_diff, y_diff = x[:, :-1, :-1] - x[:, :-1, 1:], x[:, :-1, :-1] - x[:, 1:, :-1]
    gradient[:, :-1, :-1] += x_diff + y_diff
    gradient[:, :-1, 1:] -= x_diff
    gradient[:, 1:, :-1] -= y_diff
    assert image.grad is not None
    torch.testing.assert_close(image.grad[0], 1e-3 * gradient.flip(0) * 256)


def test_noise_of_neural_style_is_as_faint_as_the_tools() -> None:
    assert start_of("neural-style").std().item() == pytest.approx(0.001 / 255, rel=0.05)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(SHIPPED.read_text("utf-8"), encoding="utf-8")
    return path


def comments(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8").split("\n") if line.lstrip().startswith("#")]


@pytest.mark.parametrize("name", TOOLS)
def test_preset_is_written_into_params_yaml(name: str, path: Path) -> None:
    write_values(values_of(preset(name)), path)
    params = read_params(path)
    assert params.backbone.model_dump().items() >= preset(name)["backbone"].items()
    fields = type(params.defaults).model_fields
    mine = type(params.defaults).model_validate(
        {"style_layers": [], "size": None, "evaluations": 1, "content_weight": 0.0}
        | {"style_weight": 0.0}
        | preset(name)["defaults"]
    )
    for key in preset(name)["defaults"]:
        assert key in fields
        assert getattr(params.defaults, key) == getattr(mine, key), key
    assert comments(path) == comments(SHIPPED)


@pytest.mark.parametrize("name", TOOLS)
def test_preset_replaces_all_of_another(name: str, path: Path) -> None:
    write_values(values_of(preset(name)), path)
    alone = path.read_text("utf-8")
    path.write_text(SHIPPED.read_text("utf-8"), encoding="utf-8")
    for each in (*TOOLS, name):
        write_values(values_of(preset(each)), path)
    assert yaml.safe_load(path.read_text("utf-8")) == yaml.safe_load(alone)


def test_command_writes_a_preset_with_a_size(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    result = CliRunner().invoke(app, ["preset", "gatys-2017", "--size", "800"])
    assert result.exit_code == 0, result.output
    defaults: Any = read_params(path).defaults
    assert defaults.size == 800
    assert [(each.size, each.evaluations) for each in defaults.sizes] == [(400, 500)]


@pytest.mark.parametrize(
    ("name", "size", "phases"),
    [
        ("crowson", None, [(128, 1000), (181, 500), (256, 500), (362, 500), (512, 500)]),
        ("crowson", 200, [(141, 1000), (200, 500)]),
        ("crowson", 100, [(100, 1000)]),
        ("spst", None, [(512, 600), (1024, 200), (2048, 66)]),
        ("spst", 1023, [(1023, 600)]),
        ("spst", 8001, [(1000, 600), (2000, 200), (4000, 66), (8001, 30)]),
        ("gatys-2017", None, [(512, 500), (1024, 200)]),
        ("neural-style", 300, [(300, 1000)]),
    ],
)
def test_sizes_follow_the_rule_of_the_tool(
    name: str, size: int | None, phases: list[tuple[int, int]]
) -> None:
    defaults = preset(name, size)["defaults"]
    before = [(each["size"], each["evaluations"]) for each in defaults["sizes"]]
    assert [*before, (defaults["size"], defaults["evaluations"])] == phases


def test_presets_have_the_same_keys_and_share_no_values() -> None:
    for name in TOOLS:
        assert {s: list(keys) for s, keys in preset(name).items()}.keys() == {
            "defaults",
            "backbone",
        }
        assert preset(name)["defaults"].keys() == preset("crowson")["defaults"].keys()
        preset(name)["defaults"]["style_layers"] = None
        preset(name)["defaults"]["lbfgs"].clear()
        assert preset(name)["defaults"]["lbfgs"]
        assert Backbone.model_validate({"calibration": ["a"], **preset(name)["backbone"]})


def test_benchmark_of_the_notebook_has_its_preset() -> None:
    written = yaml.safe_load((REPOSITORY / "benchmarks/authors-notebook.yaml").read_text("utf-8"))
    settings = {**written["defaults"], "content": "a", "style": "b"}
    benchmark = Experiment.model_validate(settings).model_dump()
    ours = experiment("gatys-notebook").model_dump()
    chosen = ("first_step", "intermediates", "precision")
    unused = ("noise_level", "moments_layers")
    for key in (*chosen, *unused):
        del benchmark[key], ours[key]
    for layer, weight in ours.pop("style_layers").items():
        assert benchmark["style_layers"].pop(layer) == 1000 * weight
    assert not benchmark.pop("style_layers")
    assert benchmark.pop("style_weight") * 1000 == ours.pop("style_weight")
    assert benchmark == ours
    same = ("architecture", "pooling", "rescale")
    backbone = preset("gatys-notebook")["backbone"]
    assert all(written["backbone"][key] == backbone[key] for key in same)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("neural-style", {"backbone": {"pooling": "avg"}}, r"backbone\.pooling is 'avg'.*'max'"),
        ("crowson", {"backbone": {"rescale": True}}, r"backbone\.rescale is True.*for False"),
        ("spst", {"defaults": {"convention": "paper"}}, r"convention is 'paper'.*'mean'"),
        ("crowson", {"defaults": {"variation_form": "mean"}}, "'mean'.*'stencil'"),
        ("spst", {"backbone": {"weights": "imagenet"}}, "weights is 'imagenet'.*Give a file"),
        ("spst", {"backbone": {"weights": "embedded"}}, "'embedded'.*is for VGG-19. Give a file"),
        ("spst", {"backbone": {"convention": "torchvision"}}, "'torchvision'.*Give backbone.weig"),
        ("crowson", {"defaults": {"schedule": "coarse_to_fine"}}, "phases at 128, 181, 256, 362"),
        ("crowson", {"defaults": {"size": 256}}, "size is 256.*phase at 362.*Give the size to"),
        ("spst", {"defaults": {"style_layers": ["conv1_1"]}}, "is the list.*{conv1_1: 0.0002441"),
        ("spst", {"defaults": {"moments_layers": ["conv2_1"]}}, "is the list.*{conv1_1: 1}"),
    ],
)
def test_contradiction_is_named_with_value_rule_and_remedy(
    name: str, given: dict[str, dict[str, Any]], message: str
) -> None:
    (sentence,) = preset_contradictions(name, given)
    assert re.search(message, sentence), sentence


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"backbone": {"weights": "/my/vgg19.pth", "convention": "torchvision"}},
        {"backbone": {"weights": "/my/vgg_conv.pth"}},
        {"defaults": {"size": 700, "content_weight": 1.0, "sizes": [], "evaluations": 7}},
        {"defaults": {"content_layers": ["conv4_2"], "moments_layers": ["conv1_1"]}},
        {"defaults": {"style_layers": {"conv1_1": 1e-4}, "init": "style", "variation_weight": 1}},
    ],
)
def test_other_keys_may_be_given(given: dict[str, dict[str, Any]]) -> None:
    assert preset_contradictions("gatys-2017", given) == []


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(UserError, match=r"no preset 'neural-styel'\. Did you mean 'neural-style'"):
        preset("neural-styel")
