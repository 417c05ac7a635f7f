"""Times many short experiments: what the pipeline costs beside their evaluations.

    python -m benchmarks.many [CHECKOUT] --count 100 --executor local

Runs `make repro`, or the same on a Ray that starts on this machine, from nothing in a clone whose
params.yaml has ``count`` experiments of one evaluation at 64 pixels, which differ in their noise,
and prints the seconds for each, with ``fetch``, ``backbone`` and ``report`` included. W&B is
offline.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from benchmarks.repro import REPOSITORY, cloned, make_repro, run_seconds
from pipeline.errors import command_line


def many(checkout: Path, count: int, jobs: int | None, executor: str = "local") -> float:
    """Returns the seconds that ``count`` experiments take in a clone of a checkout."""
    with cloned(checkout) as clone:
        file = clone / "params.yaml"
        params: dict[str, Any] = yaml.safe_load(file.read_text("utf-8"))
        params["defaults"] |= {"size": 64, "evaluations": 1}
        params["experiments"] = {
            f"noise-{seed:03}": {"content": "chelsea", "style": "gravel", "seed": seed}
            for seed in range(count)
        }
        params |= {"figures": {}, "cast": {}}
        file.write_text(yaml.safe_dump(params, sort_keys=False), "utf-8")
        if executor == "local":
            return make_repro(clone, checkout, jobs)
        command = ["python", "-m", "pipeline", "run", "--executor", executor]
        command += ["--jobs", str(jobs)] if jobs else []
        return run_seconds(clone, checkout, *command)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", nargs="?", type=Path, default=REPOSITORY)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--jobs", type=int, help="experiments at a time (default: make's own)")
    parser.add_argument("--executor", choices=["local", "ray"], default="local")
    arguments = parser.parse_args()
    checkout, executor = arguments.checkout.resolve(), arguments.executor
    spent = many(checkout, arguments.count, arguments.jobs, executor)
    each = spent / arguments.count
    print(f"{arguments.count} experiments: {spent:.1f} s, {each:.3f} s each")


if __name__ == "__main__":
    command_line(main)
