"""Processes that do not outlive the process that started them."""

import os
import signal
import threading
import time


def end_with_parent(parent: int | None = None) -> None:
    """Has SIGTERM end this process within a second of its parent's end.

    ``parent`` is the parent's number, which a parent that may end before this call should pass on.
    """
    threading.Thread(target=_watch, args=[parent or os.getppid()], daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
