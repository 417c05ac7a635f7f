"""The base class of the sections of params.yaml, and the types of values that they share."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, field_validator

from pipeline.errors import masked

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
# Text in YAML 1.1, which this package reads, and a number in YAML 1.2, which DVC reads.
_NUMBER = re.compile(r"\d+e-?\d+|0o[0-7]+", re.IGNORECASE)


def _valid_name(name: Any) -> Any:
    if isinstance(name, bool | int | float) or name is None:
        raise ValueError("YAML reads it as a number or a truth value. Put the name in quotes")
    if isinstance(name, str) and _NUMBER.fullmatch(name):
        raise ValueError("DVC reads it as a number. Begin the name with a letter")
    if isinstance(name, str) and not _NAME.fullmatch(name):
        raise ValueError(
            "a name has up to 64 letters, digits, '-' and '_', and begins with a letter or digit"
        )
    return name


def _without_credentials(source: Any) -> Any:
    if isinstance(source, str) and masked(repr(source)) != repr(source):
        raise ValueError(
            "an address with a user or a password in it is refused, since addresses are recorded "
            "with the pictures. Download the file yourself, and give its path"
        )
    return source


# A source is an address, a path, or ``package:NAME/PATH``.
Source = Annotated[str, Field(min_length=1), BeforeValidator(_without_credentials)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Name = Annotated[str, BeforeValidator(_valid_name)]


class Section(BaseModel):
    """A mapping of params.yaml. Unknown keys are errors, and values cannot be changed."""

    model_config = {"extra": "forbid", "frozen": True}

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_mistaken_truth_values(cls, value: Any, field: ValidationInfo) -> Any:
        wanted = cls.model_fields[str(field.field_name)].annotation
        if isinstance(value, bool) and re.search(r"\b(int|float)\b", repr(wanted)):
            raise ValueError("YAML reads it as a truth value. Write a number")
        if wanted is bool and not isinstance(value, bool):
            raise ValueError("Write true or false, without quotes")
        return value
