"""Stage ``plan``: params.yaml, checked → what later stages need of it, in ``data/plan``.

A stage depends on its part of the plan, so that a change runs again what it concerns: an
experiment's file has its settings completed from the defaults, and a default that it does not have
from there is none of its business.
"""

from __future__ import annotations

from pipeline.config.params import read_params
from pipeline.config.plan import write_plans
from pipeline.stages import run_stage


def plan() -> None:
    """Writes the plans of all experiments in params.yaml, of the backbone and of the report."""
    names = write_plans(read_params())
    print(f"plan: {len(names)} experiments")


if __name__ == "__main__":
    run_stage(plan)
