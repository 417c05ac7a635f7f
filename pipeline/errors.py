"""The one exception of a user's mistake, and how a stage's command line shows it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
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


def command_line(main: Callable[[], None]) -> NoReturn:
    """Runs a stage and exits: 0 when it is done, 1 with one message on a ``UserError``.

    An interrupt is 130, as a shell has it.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
