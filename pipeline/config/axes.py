"""Axes of a grid: the values of one setting, each with the label that stands for it in names."""

import re
from collections.abc import Iterable
from typing import Any

from pipeline.errors import shown

MOST_CELLS = 10_000
"""Cells of all grids together. DVC's files grow by a kilobyte for each."""
_RANGE = re.compile(r"(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})")
_LABEL = re.compile(r"[A-Za-z0-9_.-]+")


def at_least_one(axes: dict[str, Any]) -> dict[str, Any]:
    """Returns the axes of a grid, or raises ``ValueError`` if there is none."""
    if not axes:
        raise ValueError("a grid without axes has no cells. Add one, such as seed: 0..4")
    return axes


def is_range(value: object) -> bool:
    """Returns whether a value is an inclusive range of whole numbers, such as ``0..4``."""
    return isinstance(value, str) and _RANGE.fullmatch(value) is not None


def labelled(axis: Any) -> dict[str, Any]:
    """Returns {label: value} of an axis as params.yaml has it: a list, a range, or a mapping.

    Raises:
        ValueError: it is none of them, has no values, or two of them have one label.
    """
    if is_range(axis):
        axis = _numbers(axis)
    if isinstance(axis, dict):
        remedy = "Use another label"
        pairs = [(_label(label, remedy), label, value) for label, value in axis.items()]
    elif isinstance(axis, list):
        remedy = "Write the axis as a mapping of labels to values"
        pairs = [(_label(value, remedy), value, value) for value in axis]
    else:
        raise ValueError(
            "an axis is a list of values, a range of whole numbers such as 0..4, or a mapping of "
            "labels to values. For a single value write a list of one"
        )
    if not pairs:
        raise ValueError("an axis without values makes a grid without cells. Add a value")
    seen: dict[str, object] = {}
    for label, given, _ in pairs:
        # Files whose names differ only in case are one file on some systems.
        if label.casefold() in seen:
            raise ValueError(
                f"{shown(seen[label.casefold()])} and {shown(given)} give their cells one name "
                "(upper and lower case count as equal). Remove one, or give it another label"
            )
        seen[label.casefold()] = given
    return {label: value for label, _, value in pairs}


def _numbers(text: str) -> Iterable[int]:
    first, last = map(int, text.split(".."))
    if first > last:
        raise ValueError(f"a range begins with its smallest number. Write {last}..{first}")
    if last - first >= MOST_CELLS:
        raise ValueError(
            f"{last - first + 1:,} values, but all grids together have up to {MOST_CELLS:,} "
            "cells. Take fewer"
        )
    return list(range(first, last + 1))


def _label(value: object, remedy: str) -> str:
    """Returns a value as YAML writes it, in the characters that names have; 1.0 is 1."""
    if value is None or isinstance(value, bool):
        text = "null" if value is None else str(value).lower()
    elif isinstance(value, float):
        text = repr(value).removesuffix(".0").replace("e+", "e")
    else:
        text = str(value)
    if isinstance(value, list | dict) or not _LABEL.fullmatch(text):
        raise ValueError(
            f"{shown(value)} gives no name to a cell, which has letters, digits, '-', '_' and '.'. "
            f"{remedy}"
        )
    return text
