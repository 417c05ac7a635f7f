"""One start-up for many cells: importing torch and Lightning takes as long as many a run.

    python -m pipeline.warm stylize NAME

does what ``python -m pipeline.stages.stylize NAME`` does, in a fork of a process that has imported
everything (``pipeline.forks``). The first cell starts that process; 20 seconds after the last it is
gone. A cell has the caller's folder, environment and standard streams, gets its signals, ends when
it ends, and its status is the caller's. Code that was edited since is another process's. Elsewhere
than on Linux, and where anything of this fails, the stage runs here, as ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from pipeline.forks import HEAD, run_here
from pipeline.parents import end_with_dvc

START_S = 10.0
"""How long a caller waits for a process that it started to listen."""
_AT_IMPORT = (
    *("ATEN_", "CUDA", "DNNL_", "GOMP_", "KMP_", "LANG", "LC_", "LD_", "MALLOC_", "MKL_"),
    *("NVIDIA", "OMP_", "ONEDNN_", "OPENBLAS", "PYTHON", "PYTORCH_", "THP_", "TORCH"),
)
"""What begins so in the environment is read by what is imported, so it must be the same."""


def run(stage: str, arguments: Sequence[str]) -> NoReturn:
    """Runs a stage and exits with its status."""
    end_with_dvc()
    try:
        connection = _connected(stage) if sys.platform == "linux" else None
        if connection is not None:
            with connection:
                pid, answers = _ask(connection, arguments)
                if pid:
                    sys.exit(_await(pid, answers))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    run_here(stage, arguments)


def _address(stage: str) -> Path:
    """Returns the socket that stands for a stage's code here, and for what a fork inherits.

    Raises:
        OSError: the folder for it is not this user's alone.
    """
    package = Path(__file__).resolve().parent
    marks = (
        (stage, sys.executable),
        sorted((str(file), file.stat().st_mtime_ns) for file in package.rglob("*.py")),
        sorted(pair for pair in os.environ.items() if pair[0].startswith(_AT_IMPORT)),
        sorted(os.sched_getaffinity(0)),
        os.getpriority(os.PRIO_PROCESS, 0),
        [resource.getrlimit(limit) for limit in range(resource.RLIMIT_NPROC + 1)],
        re.findall(r"Umask:.*", Path("/proc/self/status").read_text()),
    )
    key = hashlib.sha256(repr(marks).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"style-transfer-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not mine or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not mine alone")
    return folder / f"{key}.sock"


def _connected(stage: str) -> socket.socket | None:
    """Returns a connection to the stage's process, started if it must be; None if that fails."""
    with contextlib.suppress(OSError):
        address = _address(stage)
        connection = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            connection.connect(str(address))
            return connection
        address.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.forks", "--serve", stage, str(address)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        end = time.monotonic() + START_S
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError):
                connection.connect(str(address))
                return connection
            time.sleep(0.02)
    return None


def _ask(connection: socket.socket, arguments: Sequence[str]) -> tuple[int, TextIO]:
    """Returns the process of a new cell, 0 if there is none, and what it answers."""
    answers = connection.makefile("r", encoding="ascii")
    request = {
        "arguments": list(arguments),
        "folder": str(Path.cwd()),
        "environment": dict(os.environ),
    }
    body = json.dumps(request).encode()
    with contextlib.suppress(OSError):
        socket.send_fds(connection, [len(body).to_bytes(HEAD, "big")], [0, 1, 2])
        connection.sendall(body)
        return int(answers.readline() or 0), answers
    return 0, answers


def _await(pid: int, answers: TextIO) -> int:
    """Returns the status of a cell when it is done; it gets the signals that come until then."""
    ended_by = [int(signal.SIGKILL)]

    def forward(number: int, _: Any) -> None:
        ended_by.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    with contextlib.suppress(OSError):
        if status := answers.readline():
            return int(status)
    if len(ended_by) == 1:
        print("error: the process was killed", file=sys.stderr)
    return 128 + ended_by[-1]


if __name__ == "__main__":
    stage, *given = sys.argv[1:] or sys.exit("usage: python -m pipeline.warm STAGE [NAME]")
    run(stage, given)
