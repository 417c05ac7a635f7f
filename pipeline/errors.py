"""Errors and warnings for the user, with passwords masked, and the exit status of a command."""

import errno
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, NoReturn

LONGEST_VALUE = 80  # characters of a value in a message
# A host without a port, behind which an @ is part of the path: https://host.org/package@1/a.png.
_HOST = r"""(?:[\w-]+(?:\.[\w-]+)+|localhost|\[[\w:.]+\])(?:[/?#\s'"]|$)"""
_ADDRESS = re.compile(rf"://(?!{_HOST})")
_PASSWORD_WITH_SPACES = re.compile(rf"://(?!{_HOST})[^/?#@]*:.*(?=@$)")
_OPENING = "'\"([{"


def masked(text: str) -> str:
    """Returns a text with "…" in the place of the users and passwords of addresses in it.

    Whatever stands between the start of an address and an @ is taken for them, since a password
    may hold any character. A text is masked before it is shortened.
    """
    return "\n".join(map(_masked_line, text.split("\n"))) if "@" in text else text


def _masked_line(line: str) -> str:
    head, at, tail = line.rpartition("@")
    head, found = _PASSWORD_WITH_SPACES.subn("://…", head + at, count=1)
    return head + tail if found else "".join(map(_masked_word, re.split(r"(\s+)", line)))


def _masked_word(word: str) -> str:
    head, at, tail = word.rpartition("@")
    if at and "://" in head:
        address = _ADDRESS.search(word)
        return f"{word[: address.end()]}…@{tail}" if address else word
    name, colon, _ = head.partition(":")
    scheme, slashes, user = name.rpartition("//")
    if colon and "/" not in user and user.lstrip(_OPENING) != "package":
        quote = user[: len(user) - len(user.lstrip(_OPENING))]
        return f"{scheme}{slashes}{quote}…@{tail}"
    return word


def shown(value: object) -> str:
    """Returns a value as Python writes it, without passwords, and without its middle if long."""
    text, half = masked(repr(value)), LONGEST_VALUE // 2
    return text if len(text) <= LONGEST_VALUE else f"{text[:half]}...{text[-half:]}"


class UserError(Exception):
    """A mistake that the user can correct. The message has the value, the rule and the remedy.

    The user name and the password of a URL in it are replaced by "…".
    """

    def __init__(self, message: str) -> None:
        super().__init__(masked(message))


class Notice(UserWarning):
    """A warning for the user; it is printed without the line of code that it comes from."""

    def __init__(self, message: str) -> None:
        super().__init__(masked(message))


def counted(count: int, noun: str) -> str:
    """Returns a number with a noun, such as "1 cell" or "2 cells"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def nearest(word: str, known: list[str]) -> str:
    """Returns ". Did you mean 'x'?" with the known word most like ``word``, or "." if none is."""
    return _nearest(word, tuple(known))


@lru_cache(maxsize=16)
def _nearest(word: str, known: tuple[str, ...]) -> str:
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


@contextmanager
def _plain_notices() -> Iterator[None]:
    """Prints each ``Notice`` as a line of its own."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_plainly(message: Warning | str, *place: Any) -> None:
            if isinstance(message, Notice):
                print(f"warning: {message}", file=sys.stderr)
            else:
                show(message, *place)

        warnings.showwarning = show_plainly  # type: ignore[assignment]
        yield


def command_line(main: Callable[[], None]) -> NoReturn:
    """Runs a command and exits: 0 when done, 1 after a ``UserError``, 130 after an interrupt."""
    try:
        with explaining_the_disk(), _plain_notices():
            main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
