"""How experiments ended in this workspace, beside DVC's outputs: failures, and W&B's runs.

DVC removes the outputs of a cell before it runs, so that a failure leaves nothing there; and a run
has another identity in W&B each time, where the outputs are the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypedDict

from pipeline import paths
from pipeline.errors import UserError
from pipeline.files import sha256, write_json, write_text

FAILURES = Path("data/status")


class Whereabouts(TypedDict, total=False):
    """Where W&B has a run; empty for one that is disabled.

    Attributes:
        url: its page.
        sync: the command that uploads its record, from the repository's folder.
    """

    url: str
    sync: str


@contextmanager
def recording_failure(experiment: str) -> Iterator[None]:
    """Writes why the block ended, if it raises; forgets an earlier failure when it begins."""
    _failure_file(experiment).unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        record_failure(experiment, _reason(error))
        raise


def record_failure(experiment: str, reason: str) -> None:
    """Writes why an experiment failed, or cannot be run."""
    with suppress(OSError):  # a full disk has no room for this either, and is said anyway
        write_text(_failure_file(experiment), reason)


def read_failure(experiment: str) -> str:
    """Returns why the latest run of an experiment failed, empty if it did not."""
    try:
        return _failure_file(experiment).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def record_run(image: Path, where: Whereabouts) -> None:
    """Writes which run made a picture; a copy of the repository that DVC makes finds it too."""
    write_json(_run_file(image), where)


def read_run(image: Path) -> Whereabouts:
    """Returns where W&B has the run that made a picture, empty where that is not known."""
    file = _run_file(image)
    if not file.is_file():
        return {}
    found: Whereabouts = json.loads(file.read_text(encoding="utf-8"))
    return found


def _failure_file(experiment: str) -> Path:
    return FAILURES / f"{experiment}.txt"


def _run_file(image: Path) -> Path:
    return paths.shared_root() / FAILURES / "runs" / f"{sha256(image)}.json"


def _reason(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        return "It was interrupted."
    return f"{type(error).__name__}: {error}"
