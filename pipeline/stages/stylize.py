"""Stage ``stylize EXPERIMENT``: runs one experiment from its plan."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from pipeline.config.params import read_params
from pipeline.config.plan import read_plan
from pipeline.errors import UserError
from pipeline.experiments.progress import ProgressDisplay
from pipeline.experiments.run import run_experiment
from pipeline.stages import run_stage


def stylize(name: str) -> None:
    """Runs an experiment from its plan."""
    with ProgressDisplay() as display:
        run_experiment(read_plan(name), read_params().run_options(name), display.report)


def main(names: Sequence[str]) -> NoReturn:
    """Runs the stage for the one experiment that is named, and exits."""

    def run() -> None:
        if len(names) != 1:
            raise UserError(f"{len(names)} names were given. Name one experiment of params.yaml")
        stylize(names[0])

    run_stage(run)


if __name__ == "__main__":
    main(sys.argv[1:])
