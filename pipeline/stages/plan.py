"""Stage ``plan``: writes into ``data/plan`` what decides the results of the later stages."""

from pipeline.config.params import read_params
from pipeline.config.plan import write_plans
from pipeline.stages import run_stage


def plan() -> None:
    """Writes the plans of all experiments in params.yaml, of the backbone and of the report."""
    names = write_plans(read_params())
    print(f"plan: {len(names)} experiments")


if __name__ == "__main__":
    run_stage(plan)
