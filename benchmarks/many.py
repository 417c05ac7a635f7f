"""Times many short experiments: what the pipeline costs beside their evaluations.

    python -m benchmarks.many [CHECKOUT] --count 100 --executor local

Runs `make repro`, or the same on a Ray that starts on this machine, from nothing in a clone whose
params.yaml has a grid of ``count`` cells of one evaluation at 64 pixels. Prints the seconds for
each, with ``fetch``, ``backbone`` and ``report`` included; then the seconds of the plan, the report
and `dvc status` by themselves, and those that a browser takes to open the pages of the report, if
playwright and Chromium are there. W&B is offline.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.problems import seconds
from benchmarks.repro import REPOSITORY, cloned, make_repro, run_seconds
from pipeline.errors import command_line

AXES: dict[str, Any] = {"style": ["gravel", "glass"], "content_weight": [0.1, 0.3, 1, 3, 10]}
"""The axes of the grid beside ``seed``."""
CELLS = 10
"""Cells for each seed."""
PAGES = "index.html", "compare.html"


def write_grid(file: Path, count: int) -> None:
    """Writes into a params.yaml a grid of ``count`` cells in the place of all experiments."""
    params: dict[str, Any] = yaml.safe_load(file.read_text("utf-8"))
    params["defaults"] |= {"size": 64, "evaluations": 1}
    params["experiments"] = {"base": {"content": "chelsea", "style": "gravel"}}
    over = AXES | {"seed": f"0..{count // CELLS - 1}"}
    params |= {"figures": {}, "cast": {}, "grids": {"many": {"base": "base", "over": over}}}
    file.write_text(yaml.safe_dump(params, sort_keys=False), "utf-8")


def measured(
    checkout: Path, count: int, jobs: int | None, executor: str
) -> Iterator[tuple[str, float]]:
    """Yields what is measured, and its value, in a clone of a checkout."""
    with cloned(checkout) as clone:
        write_grid(clone / "params.yaml", count)
        if executor == "local":
            spent = make_repro(clone, checkout, jobs)
        else:
            command = ["python", "-m", "pipeline", "run", "--executor", executor]
            command += ["--jobs", str(jobs)] if jobs else []
            spent = run_seconds(clone, checkout, *command)
        yield "all, s", spent
        yield "each experiment, s", spent / count
        for name in ("pipeline.stages.plan", "pipeline.stages.report"):
            yield f"{name}, s", run_seconds(clone, checkout, "python", "-m", name)
        yield "dvc status, s", run_seconds(clone, checkout, "python", "-m", "dvc", "status")
        yield "dvc.lock, MB", (clone / "dvc.lock").stat().st_size / 1e6
        for page in PAGES:
            yield f"{page}, MB", (clone / "reports" / page).stat().st_size / 1e6
        yield from _pages_in_a_browser(clone / "reports")


def _pages_in_a_browser(reports: Path) -> Iterator[tuple[str, float]]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return
    if (chromium := shutil.which("chromium")) is None:
        return
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name in PAGES:
            page = browser.new_page()
            address = (reports / name).as_uri()
            yield f"{name} opens, s", seconds(lambda: page.goto(address))  # noqa: B023


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", nargs="?", type=Path, default=REPOSITORY)
    parser.add_argument("--count", type=int, default=100, help="a multiple of 10")
    parser.add_argument("--jobs", type=int, help="experiments at a time (default: make's own)")
    parser.add_argument("--executor", choices=["local", "ray"], default="local")
    arguments = parser.parse_args()
    checkout, count = arguments.checkout.resolve(), arguments.count // CELLS * CELLS
    print(f"{count} experiments, {arguments.executor}")
    for what, value in measured(checkout, count, arguments.jobs, arguments.executor):
        print(f"{what:30} {value:8.3f}", flush=True)


if __name__ == "__main__":
    command_line(main)
