"""One start-up for many cells: importing torch and Lightning takes as long as many a run.

    python -m pipeline.warm stylize NAME

does what ``python -m pipeline.stages.stylize NAME`` does, in a fork of a process that has imported
everything. The first cell starts that process; ``IDLE_S`` after the last it is gone. A cell has the
caller's folder, environment and standard streams, gets its signals, ends when it ends, and its
status is the caller's. Code that was edited since is another process's. Elsewhere than on Linux,
and where anything of this fails, the stage runs here, as ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
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
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from pipeline.parents import end_with_dvc

IDLE_S, START_S = 20.0, 10.0
"""How long the process waits for another cell, and a caller for one that it started to listen."""
HEAD = 8
"""Bytes that say how long a request is."""
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
    _main(stage, arguments)


def _main(stage: str, arguments: Sequence[str]) -> NoReturn:
    importlib.import_module(f"pipeline.stages.{stage}").main(arguments)
    raise AssertionError(f"stage {stage} did not exit")


def _address(stage: str) -> Path:
    """Returns the socket that stands for a stage's code here, and for what a fork inherits.

    Raises:
        OSError: the folder for it is not this user's alone.
    """
    package = Path(__file__).resolve().parent
    files = sorted((str(file), file.stat().st_mtime_ns) for file in package.rglob("*.py"))
    given = sorted(pair for pair in os.environ.items() if pair[0].startswith(_AT_IMPORT))
    inherited = (
        sorted(os.sched_getaffinity(0)),
        os.getpriority(os.PRIO_PROCESS, 0),
        [resource.getrlimit(limit) for limit in range(resource.RLIMIT_NPROC + 1)],
        re.findall(r"Umask:.*", Path("/proc/self/status").read_text()),
    )
    marks = stage, sys.executable, files, given, inherited
    key = hashlib.sha256(repr(marks).encode()).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"style-transfer-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not mine or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not mine alone")
    return folder / f"{key[:24]}.sock"


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
            [sys.executable, "-m", "pipeline.warm", "--serve", stage, str(address)],
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


def _serve(stage: str, address: Path) -> None:
    """Listens, imports the stage, and forks a cell for each connection."""
    server = os.getpid()
    with socket.socket(socket.AF_UNIX) as listener:
        # Found only when it listens: whoever is refused takes a socket for a dead one's.
        unready = address.with_suffix(f".{server}")
        listener.bind(str(unready))
        listener.listen(16)
        unready.rename(address)
        own = address.stat().st_ino
        try:
            # Nothing that keeps files of its own, as W&B does: the first cell to end removes them.
            importlib.import_module(f"pipeline.stages.{stage}")
            mine = next(filter(_forked, _connections(listener)), None)
        finally:
            with contextlib.suppress(FileNotFoundError):
                if os.getpid() == server and address.stat().st_ino == own:
                    address.unlink()
    if mine is not None:
        _cell(stage, mine)


def _connections(listener: socket.socket) -> Iterator[socket.socket]:
    """Yields connections until none has come for a while and no cell is running."""
    listener.settimeout(1)
    busy = time.monotonic()
    while time.monotonic() - busy < IDLE_S:
        with contextlib.suppress(TimeoutError):
            yield listener.accept()[0]
        if _has_children():
            busy = time.monotonic()


def _has_children() -> bool:
    """Buries cells that have ended; returns whether there are others."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    return False


def _forked(connection: socket.socket) -> bool:
    """Returns True in a new process, which keeps the connection, and False in this one."""
    if os.fork() == 0:
        return True
    connection.close()
    return False


def _cell(stage: str, connection: socket.socket) -> NoReturn:
    """Is the cell: becomes what the caller would have been, and exits."""
    connection.settimeout(None)
    head, streams, *_ = socket.recv_fds(connection, HEAD, 3)
    body = connection.makefile("rb").read(int.from_bytes(head, "big"))
    request: dict[str, Any] = json.loads(body)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    for output in (sys.stdout, sys.stderr):
        output.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    with contextlib.suppress(OSError):  # a caller that was interrupted meanwhile is gone
        connection.sendall(f"{os.getpid()}\n".encode())
    threading.Thread(target=_end_with, args=[connection], daemon=True).start()
    status = _status(stage, request["arguments"])
    with contextlib.suppress(OSError):
        connection.sendall(f"{status}\n".encode())
    sys.exit(status)


def _status(stage: str, arguments: Sequence[str]) -> int:
    try:
        _main(stage, arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseException:  # noqa: BLE001 - the status tells the caller
        traceback.print_exc()
        return 1


def _end_with(connection: socket.socket) -> None:
    """Ends this process when the caller is gone."""
    with contextlib.suppress(OSError):
        if connection.recv(1) == b"":
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    command, *given = sys.argv[1:] or sys.exit("usage: python -m pipeline.warm STAGE [NAME]")
    if command == "--serve":
        _serve(given[0], Path(given[1]))
    else:
        run(command, given)
