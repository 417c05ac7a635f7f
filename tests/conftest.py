"""What the tests share: a small VGG-19 with random weights, a workspace, a quiet W&B."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # each has its share of the cores
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // int(workers)))

# cuBLAS reads this when it is first used, which may be in a test that is not deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from pipeline.losses import make_terms
from pipeline.losses.objective import Objective
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.layers import LAYERS
from pipeline.networks.vgg import IMAGENET_MEAN, IMAGENET_STD

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _no_wandb_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keeps a developer's own W&B account and DVC environment out of the tests."""
    # Set first, so that what a test leaves in the environment goes with the test.
    names = {"WANDB_CACHE_DIR", "WANDB_DATA_DIR", "DVC_ROOT", "DVC_EXP_NAME"}
    for name in names.union(name for name in os.environ if name.startswith("WANDB_")):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@pytest.fixture(autouse=True)
def _no_measures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the measures of runs in this process, which take longer than a tiny experiment.

    Tests with the fixture ``measured`` have them.
    """
    run = sys.modules.get("pipeline.experiments.run")
    if run is not None and "measured" not in request.fixturenames:
        measures = dict.fromkeys(("content_distance", "style_distance", "structure"), 0.5)
        monkeypatch.setattr(run, "measure", lambda *_: measures)


@pytest.fixture
def measured() -> None:
    """Says that a test needs the measures of a run."""


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def few_or_many_threads() -> tuple[int, ...]:
    """Returns the numbers of threads with which results are the same on this processor.

    An AMD EPYC of the first generation divides sums of 32 terms among 12 threads, and one of the
    fifth those of small convolutions and products.
    """
    few = 1, 2, 3, 5, 8
    info = Path("/proc/cpuinfo")  # of Linux
    is_intel = info.is_file() and "GenuineIntel" in info.read_text("utf-8", "replace")
    return (*few, 12, 16, 32, 64) if is_intel else few


def random_weights(seed: int = 0) -> dict[str, Tensor]:
    """Returns VGG-19 with He-initialised weights, as ``Features`` takes it."""
    generator = torch.Generator().manual_seed(seed)
    weights = {"mean": torch.tensor(IMAGENET_MEAN), "std": torch.tensor(IMAGENET_STD)}
    for layer in LAYERS.values():
        shape = (layer.channels_out, layer.channels_in, 3, 3)
        deviation = (2 / (9 * layer.channels_in)) ** 0.5
        weights[f"{layer.name}.weight"] = torch.randn(shape, generator=generator) * deviation
        weights[f"{layer.name}.bias"] = torch.randn(layer.channels_out, generator=generator) * 0.01
    return weights


def torchvision_keys(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the convolutions under torchvision's keys."""
    return {
        f"features.{layer.number}.{kind}": weights[f"{layer.name}.{kind}"]
        for layer in LAYERS.values()
        for kind in ("weight", "bias")
    }


@pytest.fixture(scope="session")
def weights() -> dict[str, Tensor]:
    return random_weights()


@pytest.fixture(scope="session")
def weights_file(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vgg19.safetensors"
    save_file(torchvision_keys(weights), path)
    return path


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    """Two unlike (1, 3, 24, 40) images in [0, 1]: a gradient and stripes, both with some noise."""
    generator = torch.Generator().manual_seed(3)
    height = torch.linspace(0, 1, 24).view(1, 1, 24, 1).expand(1, 3, 24, 40)
    stripes = (torch.arange(40) % 6 < 3).float().view(1, 1, 1, 40).expand(1, 3, 24, 40)
    noise = torch.rand((1, 3, 24, 40), generator=generator)
    return 0.8 * height + 0.2 * noise, 0.8 * stripes + 0.2 * noise.flip(3)


def objective_of(
    features: FrozenFeatures, images: tuple[Tensor, Tensor], **settings: object
) -> Objective:
    """Returns the total loss against a content and a style image.

    Args:
        settings: keys of an experiment; without any for content and style there is neither.
    """
    none = {"content_layers": {}, "style_layers": {}, "content_weight": 0.0, "style_weight": 0.0}
    roles = dict(zip(("content", "style"), images, strict=True))
    return Objective(features, make_terms(none | settings), roles)


def tiny_params(weights_file: Path) -> dict[str, object]:
    """Returns the parameters of two experiments that take a second each."""
    params: dict[str, object] = yaml.safe_load((REPOSITORY / "params.yaml").read_text("utf-8"))
    params["backbone"] = {
        "architecture": "vgg19",
        "weights": str(weights_file),
        "calibration": ["package:skimage/data/coffee.png"],
        "calibration_size": 64,
    }
    params["defaults"] |= {  # type: ignore[operator]
        "content_layers": ["conv2_2"],
        "style_layers": ["conv1_1", "conv2_1"],
        "size": 32,
        "evaluations": 6,
        "intermediates": [1, 4],
        "threads": 1,
        "device": "cpu",
    }
    params["experiments"] = {
        "first": {"content": "chelsea", "style": "gravel", "content_weight": 1.0},
        "second": {"content": "coffee", "style": "gravel", "init": "content"},
    }
    params["figures"] = {"both": {"title": "Both", "rows": [["first", "second"]]}}
    params["cast"] = {}
    params["tracking"] = {"mode": "offline"}
    return params


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights_file: Path) -> Path:
    """A folder to run the stages in, with the parameters of ``tiny_params``."""
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, tiny_params(weights_file))
    return tmp_path


@pytest.fixture(scope="session")
def _prepared_once(weights_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after ``fetch``, ``plan`` and ``backbone``, whose files many tests share."""
    # Not above: the tests of the core run where the packages of these are not installed.
    from pipeline.config.params import read_params
    from pipeline.networks.prepare import prepare
    from pipeline.stages.fetch import fetch
    from pipeline.stages.plan import plan

    folder = tmp_path_factory.mktemp("prepared")
    with contextlib.chdir(folder):
        write_params(folder, tiny_params(weights_file))
        params = read_params()
        fetch(params)
        plan()
        prepare(params.backbone)
    return folder


@pytest.fixture
def prepared(workspace: Path, _prepared_once: Path) -> Path:
    """The workspace after ``fetch``, ``plan`` and ``backbone``. Replace their files, never edit."""
    shutil.copytree(_prepared_once / "data", workspace / "data", copy_function=os.link)
    return workspace


def write_params(folder: Path, params: dict[str, object]) -> None:
    """Writes params.yaml, and the plans again if there are plans, as DVC would."""
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    if (folder / "data/plan").is_dir():
        with contextlib.chdir(folder):
            write_plans_again()


def write_plans_again() -> None:
    """Writes the plans of all experiments in params.yaml whose pictures have been fetched."""
    from pipeline.config.params import read_params
    from pipeline.config.plan import write_plans

    write_plans(read_params(), skip_missing=True)


def copy_of_repository(target: Path) -> None:
    """Copies what makes the pipeline run: no data, no environment, no history."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("pipeline", "data/own"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, target / name, ignore=ignored)
    for name in ("dvc.yaml", "params.yaml", "data/cells.yaml", ".gitignore", ".dvcignore"):
        shutil.copyfile(REPOSITORY / name, target / name)


def save_picture(path: Path, size: tuple[int, int] = (48, 32), mode: str = "RGB") -> Path:
    """Writes a picture of (width, height) with something to see in it."""
    Image.linear_gradient("L").resize(size).convert(mode).save(path)
    return path
