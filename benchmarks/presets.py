"""Compares the presets of other tools with this project's default, at equal size and work.

    python -m benchmarks.presets --help

Computes 20 pairs of pictures with each preset, ranks the presets by every measure of
docs/measures.md, and writes ``benchmarks/results/presets.json``, tables in ``presets.md`` and all
pictures side by side in ``presets-….jpg``. Pictures that are in the folder already are not computed
again. With ``--page`` it also writes a page on which people vote for the better of two pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import io
import multiprocessing
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from benchmarks.ranking import ranking, tables
from benchmarks.repro import REPOSITORY
from benchmarks.speed import hardware
from benchmarks.vote_page import Pair, write_page
from pipeline.config.edits.tool_presets import TOOLS, preset
from pipeline.config.params import find_experiment, validated
from pipeline.config.schema import Figure, Params
from pipeline.errors import UserError, command_line
from pipeline.experiments.request import EXPERIMENT, Request, to_content
from pipeline.experiments.single import compute_picture
from pipeline.files import json_text, read_json, write_json, write_text
from pipeline.imaging.downloads import locate
from pipeline.imaging.picture_files import read_picture
from pipeline.imaging.tensors import to_tensor
from pipeline.measures.picture import measure
from pipeline.report.contact_sheets import Tile, write_contact_sheet

FOLDER = REPOSITORY / "benchmarks" / "runs" / "presets"
RESULTS = REPOSITORY / "benchmarks" / "results" / "presets.json"

DEFAULT = "default"
"""The name of this project's own settings, those of ``transfer``, among the presets."""
PRESETS = (DEFAULT, *TOOLS)
CONTENTS = {
    "chelsea": "package:skimage/data/chelsea.png",
    "coffee": "package:skimage/data/coffee.png",
    "astronaut": "package:skimage/data/astronaut.png",
    "rocket": "package:skimage/data/rocket.jpg",
}
STYLES = {
    name: str(REPOSITORY / "data" / "paintings" / f"{name}.jpg")
    for name in ("brushwork", "glass", "hatching", "dots")
} | {"ihc": "package:skimage/data/ihc.png"}
PAIRS = tuple(Pair(content, style) for content in CONTENTS for style in STYLES)
MAX_SHEET_BYTES = 1_500_000


class Task(NamedTuple):
    """One picture: what it is computed with, of which pictures, and its file."""

    preset: str
    pair: Pair
    params: Params
    file: Path


def tasks(arguments: argparse.Namespace) -> list[Task]:
    """Returns a task for each pair and preset, all presets of a pair after each other."""
    found = []
    for pair in PAIRS:
        for name in PRESETS:
            params = params_of(name, pair, arguments)
            file = arguments.folder / f"{name}-{pair.content}-{pair.style}-{_key(params)}.png"
            found.append(Task(name, pair, params, file.absolute()))
    return found


def params_of(name: str, pair: Pair, arguments: argparse.Namespace) -> Params:
    """Returns the parameters of a preset with the benchmark's network, size and evaluations.

    The network's pooling and rescaling stay those of the preset. ``size`` is the long edge, also of
    a preset whose tool sets the short one.
    """
    request = Request(CONTENTS[pair.content], [STYLES[pair.style]])
    content = to_content(request, vgg19_is_here=False)
    if name != DEFAULT:
        sections = preset(name, arguments.size)
        content["defaults"] |= sections["defaults"]
        content["backbone"] |= sections["backbone"]
    content["backbone"] |= _network(arguments)
    content["defaults"] |= {"size": arguments.size, "size_edge": "long"}
    content["defaults"] |= {"precision": arguments.precision}
    content["defaults"] |= shared_evaluations(content["defaults"], arguments.evaluations)
    return validated(content, f"the preset {name}")


def _network(arguments: argparse.Namespace) -> dict[str, Any]:
    if not arguments.weights:
        return {"architecture": "vgg19-small", "weights": "embedded", "convention": "torchvision"}
    weights = str(Path(arguments.weights).expanduser().resolve())
    return {"architecture": "vgg19", "weights": weights, "convention": arguments.convention}


def shared_evaluations(settings: Mapping[str, Any], total: int) -> dict[str, Any]:
    """Returns the phases of some settings with ``total`` evaluations, shared in proportion.

    Raises:
        UserError: a phase would have none.
    """
    sizes = settings.get("sizes", [])
    counts = [each["evaluations"] for each in sizes] + [settings["evaluations"]]
    ends = [round(total * sum(counts[:end]) / sum(counts)) for end in range(len(counts) + 1)]
    shares = [end - begin for begin, end in pairwise(ends)]
    if min(shares) < 1:
        raise UserError(f"--evaluations {total}: {len(counts)} phases cannot share them. Give more")
    phases = [{**size, "evaluations": share} for size, share in zip(sizes, shares, strict=False)]
    return {"sizes": phases, "evaluations": shares[-1]}


def _key(params: Params) -> str:
    """Returns a hash of the parameters, so that a picture by others is not taken for this one."""
    return hashlib.sha256(json_text(params.model_dump(mode="json")).encode()).hexdigest()[:8]


def compute(todo: Sequence[Task], jobs: int) -> None:
    """Computes pictures in ``jobs`` processes, each with its share of the cores."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    spawn = multiprocessing.get_context("spawn")  # whose processes read OMP_NUM_THREADS
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        try:
            running = [pool.submit(_compute, task) for task in todo]
            for number, done in enumerate(as_completed(running), 1):
                print(f"{number} of {len(todo)}: {done.result()}", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _compute(task: Task) -> str:
    task.file.parent.mkdir(parents=True, exist_ok=True)
    # A run that is stopped writes its best image, which must not be taken for the result.
    part = task.file.with_name(f"part-{task.file.name}")
    with contextlib.redirect_stdout(io.StringIO()):
        compute_picture(task.params, part)
    part.replace(task.file)
    gc.collect()  # a module and its trainer refer to each other
    return task.file.name


def measured(done: Sequence[Task]) -> dict[str, dict[str, dict[str, float]]]:
    """Returns {preset: {pair: {measure: value}}} of the pictures as saved."""
    values: dict[str, dict[str, dict[str, float]]] = {name: {} for name in PRESETS}
    for task in done:
        image = to_tensor(read_picture(task.file))
        content, style = _files(task.pair)
        values[task.preset][str(task.pair)] = measure(image, content, {style: 1.0})
    return values


def _files(pair: Pair) -> tuple[Path, Path]:
    """Returns the files of the content and of the style image."""
    return locate(CONTENTS[pair.content], None, FOLDER), locate(STYLES[pair.style], None, FOLDER)


def write_sheet(done: Sequence[Task], file: Path, title: str) -> None:
    """Writes all pictures as a JPEG, a row for each pair and a column for each preset."""
    pictures = {(task.preset, task.pair): task.file for task in done}
    rows: list[list[Tile]] = [
        [(path, ()) for path in (*_files(pair), *(pictures[name, pair] for name in PRESETS))]
        for pair in PAIRS
    ]
    layout = Figure(
        title=title,
        rows=[["x"] * len(row) for row in rows],
        row_titles=[f"{pair.content}, {pair.style}" for pair in PAIRS],
        column_titles=["content", "style", *PRESETS],
    )
    with tempfile.TemporaryDirectory() as folder:
        sheet = Path(folder) / "sheet.png"
        write_contact_sheet(layout, rows, sheet)
        with Image.open(sheet) as picture:
            for quality in range(90, 40, -5):
                picture.convert("RGB").save(file, quality=quality, optimize=True)
                if file.stat().st_size <= MAX_SHEET_BYTES:
                    break


def main() -> None:
    arguments = _arguments()
    wanted = tasks(arguments)
    todo = [task for task in wanted if not task.file.is_file()]
    print(f"{len(wanted)} pictures, {len(todo)} to compute, in {arguments.folder}", flush=True)
    compute(todo, arguments.jobs)
    network = wanted[0].params.backbone.architecture
    print("measuring …", flush=True)
    values = measured(wanted)
    results = read_json(RESULTS)
    results[network] = {
        "hardware": hardware(),
        "size": arguments.size,
        "evaluations": arguments.evaluations,
        "precision": arguments.precision,
        "phases": {task.preset: _phases(task.params) for task in wanted[: len(PRESETS)]},
        "measures": values,
        "ranking": ranking(values),
    }
    write_json(RESULTS, results)
    write_text(RESULTS.with_suffix(".md"), tables(results))
    title = f"{network}, {arguments.size} pixels, {arguments.evaluations} evaluations"
    write_sheet(wanted, RESULTS.with_name(f"presets-{network}.jpg"), title)
    if arguments.page:
        write_page(
            arguments.page,
            {pair: _files(pair) for pair in PAIRS},
            {
                pair: {task.preset: task.file for task in wanted if task.pair == pair}
                for pair in PAIRS
            },
        )
        print(arguments.page / "vote.html")


def _phases(params: Params) -> list[tuple[int | None, int]]:
    """Returns the size and the evaluations of each phase."""
    settings = find_experiment(params, EXPERIMENT)
    phases = [(phase.size, phase.evaluations) for phase in settings.sizes]
    return [*phases, (settings.size, settings.evaluations)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", help="a file of VGG-19's weights (default: vgg19-small)")
    parser.add_argument(
        "--convention",
        choices=["torchvision", "caffe", "caffe-256"],
        default="torchvision",
        help="of the file of weights, for all presets",
    )
    parser.add_argument("--size", type=int, default=256, help="long edge, pixels")
    parser.add_argument("--evaluations", type=int, default=200, help="of all phases in sum")
    parser.add_argument("--precision", choices=["float32", "bf16", "auto"], default="float32")
    parser.add_argument("--jobs", type=int, default=1, help="processes that compute")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for the pictures")
    parser.add_argument("--page", type=Path, help="a folder for vote.html and its pictures")
    return parser.parse_args()


if __name__ == "__main__":
    command_line(main)
