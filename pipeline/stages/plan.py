"""Stage ``plan``: params.yaml, checked → what each later stage needs of it, in ``data/plan``.

A stage depends on its part of the plan, so that a change runs again what it concerns: an
experiment's file has its settings completed from the defaults, and a default that it does not have
from there is none of its business. The stages themselves read params.yaml.
"""

from __future__ import annotations

from pipeline import paths
from pipeline.errors import command_line
from pipeline.files import write_json
from pipeline.params import read_params
from pipeline.parents import end_with_dvc
from pipeline.schema import Params


def plan(params: Params) -> None:
    """Writes where the pictures come from that experiments name, and each experiment's settings."""
    experiments = params.experiments
    named = {image for each in experiments.values() for image in (each.content, each.style)}
    sources = {
        name: params.images[name].model_dump(include={"source", "hash"}) for name in sorted(named)
    }
    write_json(paths.PLAN / "images.json", sources)
    for name, settings in experiments.items():
        write_json(paths.PLAN / "experiments" / f"{name}.json", settings.model_dump())
    print(f"plan: {len(experiments)} experiments with {len(sources)} pictures")


if __name__ == "__main__":
    end_with_dvc()
    command_line(lambda: plan(read_params()))
