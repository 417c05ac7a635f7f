"""The process behind ``pipeline.warm``: it imports a stage, and forks a cell for each caller."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pipeline import shared_wandb

IDLE_S = 20.0
"""How long the process waits for another cell …"""
EXIT_S = 10
"""… and lets one that has answered clean up."""
HEAD = 8
"""Bytes that say how long a request is."""


def run_here(stage: str, arguments: Sequence[str]) -> NoReturn:
    """Runs a stage in this process, and exits with its status."""
    importlib.import_module(f"pipeline.stages.{stage}").main(arguments)
    raise AssertionError(f"stage {stage} did not exit")


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
            importlib.import_module(f"pipeline.stages.{stage}")
            if stage == "stylize":
                shared_wandb.load()
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
    shared_wandb.forked()
    with contextlib.suppress(OSError):  # a caller that was interrupted meanwhile is gone
        connection.sendall(f"{os.getpid()}\n".encode())
    threading.Thread(target=_end_with, args=[connection], daemon=True).start()
    status = _status(stage, request["arguments"])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the caller's end is no longer this one's
    signal.alarm(EXIT_S)
    with contextlib.suppress(OSError):
        connection.sendall(f"{status}\n".encode())
    sys.exit(status)


def _status(stage: str, arguments: Sequence[str]) -> int:
    try:
        run_here(stage, arguments)
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
    _, stage, address = sys.argv[1:]
    _serve(stage, Path(address))
