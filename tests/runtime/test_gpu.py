"""What needs a CUDA GPU; imports no package beside torch, Lightning, rich and pydantic."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import objective_of
from torch import Tensor

from pipeline.losses.evaluator import RecordedObjective, fastest_evaluation
from pipeline.losses.objective import MINIMISED, Objective
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.shared_features import SharedFeatures
from pipeline.networks.vgg import down_to
from pipeline.optim.lbfgs import LBFGS
from pipeline.runtime.precision import Precision
from pipeline.runtime.process_group import process_group
from pipeline.transfer.callbacks import HISTORY_FILE, History, Refinement
from pipeline.transfer.convergence import Convergence
from pipeline.transfer.module import StyleTransfer, fit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


def objective_on(
    device: str,
    weights: dict[str, Tensor],
    images: tuple[Tensor, Tensor],
    precision: Precision = "float32",
    pooling: str = "avg",
) -> Objective:
    return objective_of(
        FrozenFeatures(down_to(weights, ["conv3_1"]), pooling, precision, device),
        (images[0].to(device), images[1].to(device)),
        content_layers={"conv2_2": 1.0},
        style_layers={"conv1_1": 0.5, "conv3_1": 0.5},
        content_weight=0.1,
        style_weight=1.0,
        range_weight=1.0,
    )


def run(
    device: str, weights: dict[str, Tensor], images: tuple[Tensor, Tensor], folder: Path
) -> StyleTransfer:
    objective = objective_on(device, weights, images)
    lbfgs = {"lr": 1.0, "history_size": 5, "tolerance_grad": 0, "tolerance_change": 0}
    module = StyleTransfer(objective, images[0], lbfgs)
    convergence = Convergence(10)
    fit(module, [History(folder, convergence, [5]), convergence], 10)
    return module


def totals(folder: Path) -> tuple[float, float]:
    """Returns the first and the last total loss of a history."""
    with (folder / HISTORY_FILE).open(encoding="utf-8") as file:
        losses = [float(row["total"]) for row in csv.DictReader(file)]
    return losses[0], losses[-1]


def test_gpu_run_stays_on_the_gpu_and_agrees_with_the_cpu(
    weights: dict[str, Tensor], images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    on_gpu = run("cuda", weights, images, tmp_path / "gpu")
    run("cpu", weights, images, tmp_path / "cpu")
    assert on_gpu.image.device.type == "cuda"
    assert next(on_gpu.objective.buffers()).device.type == "cuda"
    # Later evaluations are of images that differ more and more by rounding.
    first, last = zip(*map(totals, (tmp_path / "gpu", tmp_path / "cpu")), strict=True)
    assert first[0] == pytest.approx(first[1], rel=1e-3)
    assert max(last) < 0.9 * min(first)


def test_gpu_run_gives_the_same_image_twice(
    weights: dict[str, Tensor],
    images: tuple[Tensor, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    first, second = (run("cuda", weights, images, tmp_path / name) for name in "ab")
    assert torch.equal(first.image, second.image)


def test_gpu_run_continues_in_float32_with_another_cuda_graph(
    weights: dict[str, Tensor],
    images: tuple[Tensor, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Refinement, "EVALUATIONS", 3)
    monkeypatch.setattr(Refinement, "GAIN", 1.0)
    module = StyleTransfer(objective_on("cuda", weights, images, "tf32"), images[0], {})
    convergence = Convergence(10)
    history = History(tmp_path, convergence)
    refinement = Refinement(lambda: objective_on("cuda", weights, images), history)
    fit(module, [history, convergence, refinement], 10)
    assert 0 < module.run.float32_evaluations < 10
    exact = objective_on("cpu", weights, images)
    before, after = (
        float(exact(image.detach().cpu())["total"]) for image in (images[0], module.image)
    )
    assert after < 0.9 * before


@pytest.fixture
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
@pytest.mark.usefixtures("_deterministic")
def test_evaluation_is_captured_as_a_cuda_graph(
    weights: dict[str, Tensor], images: tuple[Tensor, Tensor], precision: Precision, pooling: str
) -> None:
    objective = objective_on("cuda", weights, images, precision, pooling)
    image = images[0].cuda()
    recorded = fastest_evaluation(objective, image)
    assert isinstance(recorded, RecordedObjective)
    for other in (image, images[1].cuda()):
        other.requires_grad_()
        expected = objective(other)
        replayed = recorded(other)
        losses = replayed[MINIMISED], expected[MINIMISED]
        gradients = [torch.autograd.grad(loss, other)[0] for loss in losses]
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)
        for name in expected:
            torch.testing.assert_close(replayed[name].detach(), expected[name].detach())


@pytest.mark.parametrize(("precision", "off"), [("float32", 1e-4), ("tf32", 0.02), ("bf16", 0.06)])
def test_every_precision_agrees_with_the_cpu(
    weights: dict[str, Tensor], precision: Precision, off: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    content, style, image = (torch.rand((1, 3, 75, 101), generator=generator) for _ in range(3))
    evaluations = []
    for objective, device in (
        (objective_on("cpu", weights, (content, style)), "cpu"),
        (objective_on("cuda", weights, (content, style), precision), "cuda"),
    ):
        tried = image.to(device).requires_grad_()
        total = objective(tried)["total"]
        (gradient,) = torch.autograd.grad(total, tried)
        evaluations.append((total.detach().cpu(), gradient.cpu()))
    (expected, right), (total, gradient) = evaluations
    assert abs(total - expected) < off * expected
    assert (gradient - right).norm() < off * right.norm()


def test_iterates_on_a_gpu_are_those_of_torch() -> None:
    paths = []
    for name in ("ours", "torch"):
        point = torch.linspace(-1, 1, 300, device="cuda").requires_grad_()
        slopes = torch.logspace(-2, 0, 300, device="cuda")
        optimizer = (
            LBFGS(point, history_size=5)
            if name == "ours"
            else torch.optim.LBFGS(
                [point], max_iter=1, history_size=5, tolerance_grad=0, tolerance_change=0
            )
        )

        def closure(point: Tensor = point, slopes: Tensor = slopes) -> Tensor:
            point.grad = slopes * point.detach().sinh()
            return (slopes * point.detach().cosh()).sum()

        for _ in range(12):
            optimizer.step(closure)
        paths.append(point.detach().clone())
    torch.testing.assert_close(*paths, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("_deterministic")
def test_lbfgs_on_a_gpu_continues_from_a_saved_state_to_the_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its first steps in a process are no replays, those of the run that was not stopped are."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    slopes = torch.logspace(-2, 0, 3000, device="cuda")

    def descend(point: Tensor, optimizer: LBFGS, steps: int) -> None:
        def closure() -> Tensor:
            point.grad = slopes * point.detach().sinh()
            return (slopes * point.detach().cosh()).sum()

        for _ in range(steps):
            optimizer.step(closure)

    def begin() -> Tensor:
        return torch.linspace(-1, 1, 3000, device="cuda").requires_grad_()

    whole, stopped = begin(), begin()
    descend(whole, LBFGS(whole, history_size=5, scaling="mean"), 20)
    optimizer = LBFGS(stopped, history_size=5, scaling="mean")
    descend(stopped, optimizer, 11)
    resumed = stopped.detach().clone().requires_grad_()
    other = LBFGS(resumed, history_size=5, scaling="mean")
    other.load_state_dict(optimizer.state_dict())
    descend(resumed, other, 9)
    assert torch.equal(resumed, whole)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA GPUs")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_two_gpus_have_the_loss_and_the_gradient_of_one(
    precision: Precision, weights: dict[str, Tensor]
) -> None:
    layers = ["conv1_1", "conv3_1", "conv4_1"]
    needs = {"gram_matrix": layers, "mean_and_gram_matrix": layers}
    image = torch.rand((1, 3, 192, 320), generator=torch.Generator().manual_seed(0)).cuda()
    results = []
    with process_group(2, torch.device("cuda")) as group:
        shared = SharedFeatures(weights, "avg", precision, 64, group)
        for features in (shared, FrozenFeatures(weights, "avg", precision, "cuda", 64)):
            variable = image.clone().requires_grad_()
            statistics = features(variable, needs)
            values = (value for each in statistics.values() for value in each.values())
            loss = torch.stack([value.square().sum() for value in values])
            results.append((loss.detach(), *torch.autograd.grad(loss.sum(), variable)))
    (losses, gradient), (expected, expected_gradient) = results
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)
    cosine = torch.cosine_similarity(gradient.flatten(), expected_gradient.flatten(), dim=0)
    assert cosine > (0.999 if precision == "bf16" else 1 - 1e-5)
