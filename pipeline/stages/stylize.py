"""Stage ``stylize EXPERIMENT``: runs one experiment from its plan."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from pipeline.config.params import read_run_options
from pipeline.config.plan import read_plan
from pipeline.errors import UserError
from pipeline.experiments.progress import ProgressDisplay
from pipeline.experiments.run import run_experiment
from pipeline.stages import run_stage


def stylize(name: str) -> None:
    """Runs an experiment from its plan.

    Raises:
        UserError: it has no plan, or as ``run_experiment``.
    """
    with ProgressDisplay() as display:
        run_experiment(read_plan(name), read_run_options(name), display.report)


def _only(names: Sequence[str]) -> str:
    if len(names) != 1:
        raise UserError(f"{len(names)} names were given. Name one experiment of params.yaml")
    return names[0]


def main(arguments: Sequence[str]) -> NoReturn:
    """Runs the stage for the experiment that the arguments name, and exits."""
    run_stage(lambda: stylize(_only(arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
