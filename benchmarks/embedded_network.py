"""Measures the quality and the speed of a small network's style transfers against VGG-19's.

    python -m benchmarks.embedded_network --help

Writes ``results.json`` and ``pairs.jpg`` into ``benchmarks/runs/embedded-network``. Quality is the
loss by VGG-19: not rescaled, average pooling, style weights of the authors' notebook.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pipeline.errors import command_line
from pipeline.files import write_json
from pipeline.imaging.downloads import locate
from pipeline.imaging.picture_files import read_picture
from pipeline.imaging.tensors import resize, scaled_size, to_picture, to_tensor, white_noise
from pipeline.losses import make_terms
from pipeline.losses.objective import Objective
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.layers import LAYERS
from pipeline.networks.small_vgg import tapped
from pipeline.networks.weight_files import EMBEDDED, imagenet_weights, load_small, load_weights
from pipeline.optim.lbfgs import Scaling
from pipeline.transfer.callbacks import History
from pipeline.transfer.convergence import Convergence
from pipeline.transfer.module import StyleTransfer, fit

FOLDER = Path(__file__).resolve().parent / "runs" / "embedded-network"

PAIRS = {
    "chelsea × ihc": ("chelsea.png", "ihc.png"),
    "coffee × hubble": ("coffee.png", "hubble_deep_field.jpg"),
    "astronaut × gravel": ("astronaut.png", "gravel.png"),
    "rocket × grass": ("rocket.jpg", "grass.png"),
    "coffee × retina": ("coffee.png", "retina.jpg"),
}
"""Content and style, of scikit-image; chosen before any network was measured on them."""

STYLE = ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1")
WEIGHTS = {name: 1e3 / LAYERS[name].channels_out ** 2 for name in STYLE}
EVALUATIONS, COLD = 300, 200
WARM_EVALUATIONS = 200
SPEED_SIZES = (192, 256), (384, 512)


class FromNoise(NamedTuple):
    """A run from noise: by which network, from which level, for how many evaluations."""

    network: str
    level: float
    evaluations: int


FROM_NOISE = {
    "faint": FromNoise("small", 0.1, EVALUATIONS),
    "faint-vgg19": FromNoise("VGG-19", 0.1, EVALUATIONS),
    "faint-longer": FromNoise("small", 0.1, 2 * EVALUATIONS),
    "noise": FromNoise("small", 1.0, EVALUATIONS),
}
"""By name; 0.1 is the default level of params.yaml, 1 the full range."""
SHEET_HEIGHT = 170


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    file = Path(arguments.weights).expanduser() if arguments.weights else imagenet_weights()
    vgg = FrozenFeatures(load_weights(file, "torchvision"), "avg")
    small = FrozenFeatures(tapped(load_small(Path(arguments.student).expanduser())), "avg")
    FOLDER.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"torch": torch.__version__, "threads": arguments.threads}
    if "speed" in arguments.parts:
        results["speed"] = [speed(vgg, small, size) for size in SPEED_SIZES]
    if "quality" in arguments.parts:
        results["quality"] = {}
        for name in PAIRS:
            results["quality"][name] = quality(vgg, small, name, arguments)
            write_json(FOLDER / "results.json", results)
        shares = [pair["small_percent"] for pair in results["quality"].values()]
        results["median_percent"] = statistics.median(shares)
        sheet(FOLDER / "pairs.jpg")
    write_json(FOLDER / "results.json", results)
    print(tables(results))


def quality(
    vgg: FrozenFeatures, small: FrozenFeatures, pair: str, arguments: Any
) -> dict[str, float | None]:
    """Returns VGG-19's total loss of a pair's pictures by either network, and of a warm start's.

    Percentages are of the loss of the content image, where every run starts but those from noise.
    ``warm_evaluations`` are those of VGG-19 after a warm start until it is where ``COLD`` led
    without, None where three quarters of them did not get there. The pictures are written:
    ``small.png``, ``vgg19.png``, and those of ``FROM_NOISE`` by their names.
    """
    folder = FOLDER / "".join(character for character in pair if character.isalnum())
    folder.mkdir(parents=True, exist_ok=True)
    content, style = (image_of(name, arguments.size) for name in PAIRS[pair])
    judge, proxy = objective(vgg, content, style), objective(small, content, style)
    begin = total(judge, content)
    result: dict[str, float | None] = {"start": begin}
    picture, _ = optimised(proxy, content, EVALUATIONS, folder / "small")
    result["small_percent"] = 100 * total(judge, picture) / begin
    for name, (network, level, evaluations) in FROM_NOISE.items():
        if network == "VGG-19" and "vgg19" not in arguments.parts:
            continue
        problem = judge if network == "VGG-19" else proxy
        noise = white_noise(_size(content), 0, level)
        picture, _ = optimised(problem, noise, evaluations, folder / name)
        result[f"{name}_percent"] = 100 * total(judge, picture) / begin
    if "vgg19" in arguments.parts:
        _, cold = optimised(judge, content, EVALUATIONS, folder / "vgg19")
        result["vgg19_percent"] = 100 * cold[-1] / begin
        warm, _ = optimised(proxy, content, WARM_EVALUATIONS, folder / "warm-small")
        _, losses = optimised(judge, warm, round(0.75 * COLD), folder / "warm")
        reached = [number for number, loss in enumerate(losses, 1) if loss <= cold[COLD - 1]]
        result["warm_evaluations"] = reached[0] if reached else None
    return result


def image_of(name: str, size: int) -> Tensor:
    """Returns a picture of scikit-image's, its long edge ``size``: (1, 3, H, W), RGB in [0, 1]."""
    image = to_tensor(read_picture(locate(f"package:skimage/data/{name}", None, FOLDER)))
    return resize(image, scaled_size(_size(image), "long", size), "bicubic", antialias=True)


def _size(image: Tensor) -> tuple[int, int]:
    height, width = image.shape[-2:]
    return height, width


def objective(features: FrozenFeatures, content: Tensor, style: Tensor) -> Objective:
    """Returns content and style loss as the authors' notebook weighs them."""
    settings = {
        "content_layers": {"conv4_2": 1.0},
        "style_layers": WEIGHTS,
        "content_weight": 1.0,
        "style_weight": 1.0,
    }
    return Objective(features, make_terms(settings), {"content": content, "style": style})


def optimised(
    problem: Objective, start: Tensor, evaluations: int, folder: Path, scaling: Scaling = "newest"
) -> tuple[Tensor, list[float]]:
    """Returns the optimised image and every evaluation's total loss; writes ``FOLDER.png``."""
    module = StyleTransfer(problem, start, {"history_size": 20, "scaling": scaling})
    convergence = Convergence(evaluations)
    fit(module, [History(folder, convergence), convergence], evaluations)
    with (folder / "history.csv").open(encoding="utf-8") as file:
        losses = [float(row["total"]) for row in csv.DictReader(file)]
    image = module.image.detach()
    to_picture(image).save(folder.with_suffix(".png"))
    return image, losses


def total(problem: Objective, image: Tensor) -> float:
    with torch.no_grad():
        return float(problem(image)["total"])


def speed(vgg: FrozenFeatures, small: FrozenFeatures, size: tuple[int, int]) -> dict[str, Any]:
    """Returns the seconds of one evaluation of either network, taken in turns, and their ratio."""
    generator = torch.Generator().manual_seed(0)
    content, style = (torch.rand((1, 3, *size), generator=generator) for _ in range(2))
    problems = objective(vgg, content, style), objective(small, content, style)
    rounds = [[_seconds(problem, content) for problem in problems] for _ in range(9)][1:]
    of_vgg, of_small = (statistics.median(times) for times in zip(*rounds, strict=True))
    return {
        "size": f"{size[1]}×{size[0]}",
        "vgg19_s": of_vgg,
        "small_s": of_small,
        "ratio": statistics.median(vgg_s / small_s for vgg_s, small_s in rounds),
    }


def _seconds(problem: Callable[[Tensor], Any], start: Tensor) -> float:
    image = start.clone().requires_grad_()
    begin = time.perf_counter()
    problem(image)["total"].backward()
    return time.perf_counter() - begin


def sheet(path: Path) -> None:
    """Writes a column for each pair: by the small network, by VGG-19, and from noise."""
    rows: list[list[Image.Image]] = []
    for kind in ("small", "vgg19", *FROM_NOISE):
        files = [FOLDER / "".join(filter(str.isalnum, pair)) / f"{kind}.png" for pair in PAIRS]
        rows.append([_of_height(file) for file in files if file.is_file()])
    width = max(sum(picture.width for picture in row) for row in rows)
    canvas = Image.new("RGB", (width, len(rows) * SHEET_HEIGHT), "white")
    for number, row in enumerate(rows):
        left = 0
        for picture in row:
            canvas.paste(picture, (left, number * SHEET_HEIGHT))
            left += picture.width
    canvas.save(path, quality=85)


def _of_height(file: Path) -> Image.Image:
    picture = Image.open(file)
    width = picture.width * SHEET_HEIGHT // picture.height
    return picture.resize((width, SHEET_HEIGHT), Image.Resampling.LANCZOS)


def tables(results: dict[str, Any]) -> str:
    """Returns the results as Markdown."""
    lines = []
    if "speed" in results:
        lines += ["| size | VGG-19, s | small, s | ratio |", "|---|---:|---:|---:|"]
        lines += [
            f"| {row['size']} | {row['vgg19_s']:.3f} | {row['small_s']:.4f} | {row['ratio']:.1f} |"
            for row in results["speed"]
        ]
        lines.append("")
    if "quality" in results:
        titles = {"small_percent": "small, %", "vgg19_percent": "VGG-19, %"}
        for name, (network, level, evaluations) in FROM_NOISE.items():
            titles[f"{name}_percent"] = f"{network} from noise {level}, {evaluations}, %"
        titles["warm_evaluations"] = "warm start, evaluations"
        lines += [f"| pair | {' | '.join(titles.values())} |", f"|---|{'---:|' * len(titles)}"]
        for name, pair in results["quality"].items():
            cells = [_cell(pair[key]) if key in pair else "" for key in titles]
            lines.append(f"| {' | '.join([name, *cells])} |")
        lines.append(f"\nmedian {results['median_percent']:.2f} %")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.2f}".removesuffix(".00")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", help="a file of VGG-19's weights (default: torchvision's)")
    parser.add_argument("--student", default=str(EMBEDDED), help="a small network's file")
    parser.add_argument("--size", type=int, default=256, help="long edge, pixels")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=["speed", "quality", "vgg19"],
        default=["speed", "quality", "vgg19"],
        help="vgg19: VGG-19's own pictures and warm starts too, which take a quarter of an hour",
    )
    return parser.parse_args()


if __name__ == "__main__":
    command_line(main)
