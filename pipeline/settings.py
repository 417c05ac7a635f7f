"""What the fields of params.yaml are made of: names, weights, layers; and a section's manners."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from pipeline.errors import UserError
from pipeline.losses.functions import CONVENTIONS
from pipeline.networks.layers import LAYERS, check_layers

_CREDENTIALS = re.compile(r"[^/]*://[^/]*@")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_NUMBER = re.compile(r"\d+e-?\d+|0o[0-7]+", re.IGNORECASE)
"""Texts to YAML 1.1, by which this package reads, and numbers to YAML 1.2, by which DVC does."""


def _equal_weights(layers: Any) -> Any:
    """A list of layers means equal weights that add up to 1: the paper's w_l = 1/5."""
    if isinstance(layers, str):
        raise ValueError(f"a list is needed. Write [{layers}]")
    if not isinstance(layers, list) or not all(isinstance(name, str) for name in layers):
        return layers
    if len(set(layers)) < len(layers):
        raise ValueError("a layer stands twice. Give it a larger weight: {conv4_2: 2.0}")
    return {name: 1 / len(layers) for name in layers}


def _known_layers(layers: dict[str, float]) -> dict[str, float]:
    try:
        check_layers(layers)
    except UserError as error:
        raise ValueError(str(error)) from error
    return {name: layers[name] for name in LAYERS if name in layers}


def _known_convention(name: str) -> str:
    if name not in CONVENTIONS:
        raise ValueError(f"{name!r} is none of {', '.join(CONVENTIONS)}")
    return name


def _a_text(name: Any) -> Any:
    if isinstance(name, bool | int | float) or name is None:
        raise ValueError("YAML reads it as a number or a truth value. Put the name in quotes")
    return name


def _known_name(name: str) -> str:
    if _NUMBER.fullmatch(name):
        raise ValueError("DVC reads it as a number. Begin the name with a letter")
    if not _NAME.fullmatch(name):
        raise ValueError(
            "a name has up to 64 letters, digits, '-' and '_', and begins with a letter or digit"
        )
    return name


def _without_credentials(source: str) -> str:
    if _CREDENTIALS.match(source):
        raise ValueError(
            "an address with a user or a password in it is refused, since addresses are recorded "
            "with the pictures. Download the file yourself, and give its path"
        )
    return source


Source = Annotated[str, Field(min_length=1), AfterValidator(_without_credentials)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LayerWeights = Annotated[
    dict[str, Weight], BeforeValidator(_equal_weights), AfterValidator(_known_layers)
]
Name = Annotated[str, BeforeValidator(_a_text), AfterValidator(_known_name)]
LossConvention = Annotated[str, AfterValidator(_known_convention)]


class Section(BaseModel):
    """A mapping of params.yaml: unknown keys are mistakes, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_values_are_no_numbers(cls, value: Any, field: ValidationInfo) -> Any:
        wanted = cls.model_fields[str(field.field_name)].annotation
        if isinstance(value, bool) and re.search(r"\b(int|float)\b", repr(wanted)):
            raise ValueError("YAML reads it as a truth value. Write a number")
        if wanted is bool and not isinstance(value, bool):
            raise ValueError("Write true or false, without quotes")
        return value
