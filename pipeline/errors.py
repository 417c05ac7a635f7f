"""The one exception of a user's mistake, and how a stage's command line shows it."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import NoReturn

_CREDENTIALS = re.compile(r"://[^/\s]*@")


class UserError(Exception):
    """A mistake that the user can mend: the message holds the value, the rule and the remedy.

    User and password of an address in it are replaced by "…": it is printed, recorded and shown.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_CREDENTIALS.sub("://…@", message))


def nearest(word: str, known: list[str]) -> str:
    """Returns ". Did you mean 'x'?" with the known word most like ``word``, or "." if none is."""
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f". Did you mean {close[0]!r}?" if close else "."


_OF_THE_DISK = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT),
        "the disk is full. Make room and run it again: an experiment goes on from its checkpoint",
    ),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "this may not be read or written here. Give the user the right to, or work on a copy of "
        "the repository elsewhere; an experiment goes on from its checkpoint",
    ),
    **dict.fromkeys(
        (errno.ENOENT, errno.ENOTDIR),
        "it is not there, or its folder. If it was removed meanwhile, run it again: an experiment "
        "goes on from its checkpoint. If it never was, `dvc repro` makes it",
    ),
}


@contextmanager
def explaining_the_disk() -> Iterator[None]:
    """Makes a ``UserError`` of what the system says of full disks, rights, and files removed."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_THE_DISK or not error.filename:
            raise
        raise UserError(
            f"{error.filename}: {_OF_THE_DISK[error.errno]} ({error.strerror})"
        ) from error


def command_line(main: Callable[[], None]) -> NoReturn:
    """Runs a stage and exits: 0 when it is done, 1 with one message on a ``UserError``.

    An interrupt is 130, as a shell has it.
    """
    try:
        with explaining_the_disk():
            main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
