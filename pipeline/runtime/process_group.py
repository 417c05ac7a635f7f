"""Processes that compute one picture together, each on a device of its own.

The first process leads: it runs the experiment as if it were alone, and has the others call the
same methods as itself at the same time. Calls go through pipes, tensors through torch.distributed,
by NCCL between GPUs and by Gloo between CPUs. What a checkpoint needs of the others, the leader
fetches.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import UserError
from pipeline.runtime.processes import end_with_parent

TIMEOUT = timedelta(hours=1)
"""The longest that a process waits for the others."""
CLOSING_S = 30
"""Seconds that the other processes have to end."""

Item = TypeVar("Item")


class ProcessGroup:
    """The processes that compute together, seen from one of them.

    Attributes:
        rank: the number of this process, from 0, the leader.
        size: how many there are.
        device: that of this process.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | str = "cpu") -> None:
        self.rank, self.size, self.device = rank, size, torch.device(device)
        self.others: list[subprocess.Popen[bytes]] = []
        self._copies = 0
        self._unused: list[int] = []

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Returns the items of which this process takes care; each has one process."""
        return items[self.rank :: self.size]

    def add_up(self, values: Tensor) -> Tensor:
        """Adds to the values, in place, those of the other processes, and returns them.

        Every process calls this, with values of one shape, type and memory layout.
        """
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def copies(self, kind: type, *arguments: Any) -> Copies:
        """Makes ``kind(group, *arguments)`` in the other processes. For the leader."""
        self._copies += 1
        self.send(self._copies, f"{kind.__module__}:{kind.__name__}", arguments)
        return Copies(self, self._copies)

    def send(self, number: int, what: str, arguments: Sequence[Any]) -> None:
        """Has the copies of a number call a method, or be made if ``what`` is MODULE:CLASS.

        The arguments are tensors, types of tensors, what JSON has, and mappings and sequences of
        these, which arrive as dictionaries and lists.
        """
        tensors: list[Tensor] = []
        message = json.dumps([self._unused, number, what, _described(arguments, tensors)]).encode()
        self._unused = []
        for process in self.others:
            assert process.stdin is not None
            process.stdin.write(message + b"\n")
            process.stdin.flush()
        for tensor in tensors:
            dist.broadcast(tensor.detach().to(self.device).contiguous(), 0)

    def forget(self, number: int) -> None:
        """Frees the copies of a number with the next message: this one may come amid a sum."""
        self._unused.append(number)


ALONE = ProcessGroup()
"""The group of a process that computes without others."""


class Copies:
    """An object's copies in the other processes, as the leader sees them."""

    def __init__(self, group: ProcessGroup, number: int) -> None:
        self.group, self.number = group, number

    def call(self, method: str, *arguments: Any) -> None:
        """Has each copy call a method; the leader then calls the same one of its own object."""
        self.group.send(self.number, method, arguments)

    def __del__(self) -> None:
        self.group.forget(self.number)


@contextmanager
def process_group(size: int, device: torch.device) -> Iterator[ProcessGroup]:
    """Starts further processes on this machine, and ends them after the block.

    On a CPU, all of them share the threads of this process. GPUs are those from ``device`` on.

    Raises:
        UserError: there are fewer GPUs, the device is neither a CUDA GPU nor the CPU, or one of
            the other processes ended early.
    """
    if size == 1:
        yield ALONE
        return
    devices, threads = _devices(size, device), torch.get_num_threads()
    each = max(1, threads // size) if device.type == "cpu" else threads
    torch.set_num_threads(each)
    group = ProcessGroup(0, size, devices[0])
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        for rank in range(1, size):
            arguments = map(str, (os.getpid(), store, rank, size, devices[rank], each))
            command = [sys.executable, "-m", __name__, *arguments]
            # Signals of a terminal go to the leader alone, which ends the others.
            process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
            group.others.append(process)
        try:
            _join(group, store)
            yield group
            for process in group.others:
                assert process.stdin is not None
                process.stdin.close()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(CLOSING_S)
        except (RuntimeError, OSError) as error:
            _explain(group, error)
            raise
        finally:
            for process in group.others:
                process.kill()
                with suppress(OSError):  # what it had not read yet
                    process.communicate()
            if dist.is_initialized():
                dist.destroy_process_group()
            torch.set_num_threads(threads)


def _devices(size: int, device: torch.device) -> list[torch.device]:
    if device.type == "cpu":
        return [device] * size
    first, count = device.index or 0, torch.cuda.device_count()
    if device.type != "cuda" or first + size > count:
        raise UserError(
            f"devices is {size}, but torch finds {count} CUDA GPUs here. Use at most "
            f"{max(1, count - first)}"
        )
    return [torch.device("cuda", number) for number in range(first, first + size)]


def _join(group: ProcessGroup, store: Path) -> None:
    if group.device.type == "cuda":
        torch.cuda.set_device(group.device)
    dist.init_process_group(
        "nccl" if group.device.type == "cuda" else "gloo",
        store=dist.FileStore(str(store), group.size),  # type: ignore[attr-defined]
        rank=group.rank,
        world_size=group.size,
        timeout=TIMEOUT,
    )


def _explain(group: ProcessGroup, error: Exception) -> None:
    """Raises ``UserError`` if another process is the reason of an error of this one."""
    for rank, process in enumerate(group.others, 1):
        try:
            status = process.wait(1)
        except subprocess.TimeoutExpired:
            continue
        raise UserError(
            f"process {rank} of the {group.size} that compute the picture ended with status "
            f"{status}, probably for lack of memory if it is -9. Start the run again, which goes "
            "on from its last checkpoint, or with fewer devices"
        ) from error


def _follow(leader: str, store: str, rank: str, size: str, device: str, threads: str) -> None:
    """Does what the leader sends, in a process of its own."""
    end_with_parent(int(leader))
    torch.set_num_threads(int(threads))
    group = ProcessGroup(int(rank), int(size), device)
    _join(group, Path(store))
    objects: dict[int, Any] = {}
    for message in sys.stdin.buffer:
        unused, number, what, described = json.loads(message)
        for old in unused:
            objects.pop(old, None)
        arguments = _received(described, group.device)
        module, is_class, name = what.partition(":")
        if is_class:
            objects[number] = getattr(import_module(module), name)(group, *arguments)
        else:
            getattr(objects[number], what)(*arguments)
        del arguments
    dist.destroy_process_group()


def _described(value: Any, tensors: list[Tensor]) -> Any:
    """Returns a value as JSON has it; the tensors in it are added to the list."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": list(value.shape), "dtype": str(value.dtype)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value)}
    if isinstance(value, Mapping):
        return {"items": {key: _described(each, tensors) for key, each in value.items()}}
    if isinstance(value, list | tuple):
        return [_described(each, tensors) for each in value]
    return value


def _received(described: Any, device: torch.device) -> Any:
    """Returns the value that was described, and receives the tensors in it in their order."""
    if isinstance(described, list):
        return [_received(each, device) for each in described]
    if not isinstance(described, dict):
        return described
    if "items" in described:
        return {key: _received(each, device) for key, each in described["items"].items()}
    dtype = getattr(torch, described["dtype"].removeprefix("torch."))
    if "tensor" not in described:
        return dtype
    tensor = torch.empty(described["tensor"], dtype=dtype, device=device)
    dist.broadcast(tensor, 0)
    return tensor


if __name__ == "__main__":
    # The module under its name, whose classes the messages mean, and not this __main__.
    from pipeline.runtime import process_group as module

    module._follow(*sys.argv[1:])
