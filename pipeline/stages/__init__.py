"""The stages of dvc.yaml: each module reads its inputs, calls one function, and writes outputs."""

import os
from collections.abc import Callable
from typing import NoReturn

from pipeline.errors import command_line
from pipeline.runtime.processes import end_with_parent


def run_stage(main: Callable[[], None]) -> NoReturn:
    """Runs a stage and exits; a stage that DVC started ends when DVC is killed."""
    if "DVC_STAGE" in os.environ:
        end_with_parent()
    command_line(main)
