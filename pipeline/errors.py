"""The exception for mistakes of the user, and the exit of a command that meets one."""

import errno
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import NoReturn

_CREDENTIALS = re.compile(r"://[^/\s]*@")


class UserError(Exception):
    """A mistake that the user can correct. The message has the value, the rule and the remedy.

    The user name and the password of a URL in it are replaced by "…".
    """

    def __init__(self, message: str) -> None:
        super().__init__(_CREDENTIALS.sub("://…@", message))


def nearest(word: str, known: list[str]) -> str:
    """Returns ". Did you mean 'x'?" with the known word most like ``word``, or "." if none is."""
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f". Did you mean {close[0]!r}?" if close else "."


_FULL = "the disk is full. Make room and run it again: an experiment goes on from its checkpoint"
_REFUSED = (
    "this may not be read or written here. Give the user the right to, or work on a copy of the "
    "repository elsewhere; an experiment goes on from its checkpoint"
)
_MISSING = (
    "it is not there, or its folder. If it was removed meanwhile, run it again: an experiment goes "
    "on from its checkpoint. If it never was, `dvc repro` makes it"
)
_FILE_ERRORS = {errno.ENOSPC: _FULL, errno.EDQUOT: _FULL}
_FILE_ERRORS |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _REFUSED)
_FILE_ERRORS |= dict.fromkeys((errno.ENOENT, errno.ENOTDIR), _MISSING)


@contextmanager
def explaining_the_disk() -> Iterator[None]:
    """Turns the system's errors of full disks, permissions and missing files into ``UserError``."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FILE_ERRORS or not error.filename:
            raise
        message = f"{error.filename}: {_FILE_ERRORS[error.errno]} ({error.strerror})"
        raise UserError(message) from error


def command_line(main: Callable[[], None]) -> NoReturn:
    """Runs a command and exits: 0 when done, 1 after a ``UserError``, 130 after an interrupt."""
    try:
        with explaining_the_disk():
            main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
