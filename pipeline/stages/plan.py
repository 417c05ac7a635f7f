"""Stage ``plan``: writes into ``data/plan`` what decides the results of the later stages."""

from pipeline import paths
from pipeline.config.grids import update_cells_file
from pipeline.config.params import read_params
from pipeline.config.plan import write_plans
from pipeline.errors import UserError, counted
from pipeline.stages import run_stage


def plan() -> None:
    """Writes the plans of all experiments in params.yaml, of the backbone and of the report.

    Raises:
        UserError: DVC has not read the cells of the grids as they are now.
    """
    params = read_params()
    names = write_plans(params)
    print(f"plan: {counted(len(names), 'experiment')}")
    if update_cells_file(params):
        raise UserError(
            f"{paths.CELLS} did not list the cells of the grids in params.yaml, and does now. "
            "Nothing is lost: run `dvc repro` again, since DVC reads that file before any stage "
            "runs. `python -m pipeline run` writes the file itself, and `dvc exp run --set-param` "
            "cannot change a grid"
        )


if __name__ == "__main__":
    run_stage(plan)
