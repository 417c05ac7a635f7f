"""The base class of the sections of params.yaml, and the types of values that they share."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, field_validator

from pipeline.errors import masked

LONGEST_NAME = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
NAME_RULE = "a name has up to 64 letters, digits, '-' and '_', and begins with a letter or digit"


def _valid_name(name: Any) -> Any:
    if isinstance(name, bool | int | float) or name is None:
        raise ValueError("YAML reads it as a number or a truth value. Put the name in quotes")
    if isinstance(name, str) and not _NAME.fullmatch(name):
        raise ValueError(NAME_RULE)
    return name


def _valid_cell_name(name: Any) -> Any:
    if isinstance(name, str):
        _valid_name(name.replace(".", "_"))
        return name
    return _valid_name(name)


def _valid_source(source: Any) -> Any:
    if isinstance(source, str) and masked(repr(source)) != repr(source):
        raise ValueError(
            "an address with a user or a password in it is refused, since addresses are recorded "
            "with the pictures. Download the file yourself, and give its path"
        )
    if isinstance(source, str) and source.startswith("~"):
        try:
            Path(source).expanduser()
        except RuntimeError as error:
            raise ValueError("there is no such user. Write the path without ~") from error
    return source


def one_line(text: Any) -> Any:
    """Puts spaces in the place of ends of lines, as in the titles that YAML folds with ``>``."""
    return re.sub(r"\s*\n\s*", " ", text).strip() if isinstance(text, str) else text


# A source is an address, a path, or ``package:NAME/PATH``.
Source = Annotated[str, Field(min_length=1, max_length=4096), BeforeValidator(_valid_source)]
Text = Annotated[str, Field(max_length=2000), BeforeValidator(one_line)]
Label = Annotated[str, Field(max_length=200), BeforeValidator(one_line)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Name = Annotated[str, BeforeValidator(_valid_name)]
# Of an experiment, which may be a cell of a grid and then has numbers with a point in its name.
CellName = Annotated[str, BeforeValidator(_valid_cell_name)]


class Section(BaseModel):
    """A mapping of params.yaml. Unknown keys are errors, and values cannot be changed."""

    model_config = {"extra": "forbid", "frozen": True}

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_mistaken_truth_values(cls, value: Any, field: ValidationInfo) -> Any:
        wanted = cls.model_fields[str(field.field_name)].annotation
        if _has_truth_value(value) and _is_numeric(wanted):
            raise ValueError("YAML reads it as a truth value. Write a number")
        if wanted is bool and not isinstance(value, bool):
            raise ValueError("Write true or false, without quotes")
        return value


def _is_numeric(annotation: Any) -> bool:
    return re.search(r"\b(int|float)\b", repr(annotation)) is not None


def _has_truth_value(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, bool) or any(map(_has_truth_value, parts))


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    """Yields the sections that the type of a field has in it."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from sections_in(argument)
