"""A stage ends when the DVC that runs it was killed: nobody would ask for its result."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

SHELLS = "bash", "dash", "fish", "ksh", "sh", "zsh"


def end_with_dvc() -> None:
    """Has SIGTERM end this process within a second of DVC's end, if DVC runs it, on Linux."""
    if "DVC_STAGE" in os.environ and sys.platform == "linux":
        threading.Thread(target=_watch, args=[_up_to_dvc()], daemon=True).start()


def _up_to_dvc() -> list[int]:
    """Returns the processes above this one up to DVC's, which may have a shell between."""
    parent, name = os.getppid(), ""
    with contextlib.suppress(OSError):
        name = Path(f"/proc/{parent}/comm").read_text().strip()
    return [parent, _parent_of(parent)] if name in SHELLS else [parent]


def _parent_of(process: int) -> int:
    """Returns the parent of a process, 0 for one that is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _watch(above: list[int]) -> None:
    while [os.getppid(), *map(_parent_of, above[:-1])] == above:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
