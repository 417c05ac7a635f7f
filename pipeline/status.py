"""How the latest run of an experiment in this workspace ended, and where W&B has it.

Kept outside DVC's outputs: DVC removes those of a cell before it runs, and a run's identity in W&B
is another each time, where the outputs are the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

from pipeline import paths
from pipeline.errors import UserError
from pipeline.files import sha256, write_json
from pipeline.tracking import Whereabouts


class Status(TypedDict, total=False):
    """What is known of a run.

    Attributes:
        failure: why it ended without a picture.
        image: sha256 of the picture it wrote.
        run: where W&B has it.
    """

    failure: str
    image: str
    run: Whereabouts


@contextmanager
def recorded(experiment: str, image: Path) -> Iterator[Status]:
    """Yields the status of a run to add to, and writes it when the block ends, however it ends.

    Args:
        experiment: its name.
        image: the picture that the block writes.
    """
    status = Status()
    try:
        yield status
        status["image"] = sha256(image)
    except BaseException as error:
        status["failure"] = _reason(error)
        raise
    finally:
        write_json(_path(experiment), status)


def read_status(experiment: str) -> Status:
    """Returns what the latest run here left, empty where there was none."""
    try:
        found: Status = json.loads(_path(experiment).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Status()
    return found


def _reason(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        return "it was interrupted"
    return f"{type(error).__name__}: {error}"


def _path(experiment: str) -> Path:
    return paths.shared_root() / "data" / "status" / f"{experiment}.json"
