"""The loss terms, one module each, and their weighted sum."""

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from pipeline.losses.term import LossTerm

_NO_TERMS = {"term", "objective", "evaluator"}  # the last two import torch, which takes seconds


@cache
def loss_terms() -> tuple[type[LossTerm], ...]:
    """Returns the terms that the modules of this package define, by their ``order``."""
    names = {module.name for module in pkgutil.iter_modules(__path__)} - _NO_TERMS
    terms = {
        value
        for name in names
        for value in vars(import_module(f"{__name__}.{name}")).values()
        if isinstance(value, type) and issubclass(value, LossTerm) and hasattr(value, "name")
    }
    return tuple(sorted(terms, key=lambda term: term.order))


def make_terms(settings: Mapping[str, Any]) -> tuple[LossTerm, ...]:
    """Returns all terms with the settings of an experiment, {key: value}."""
    return tuple(term(settings) for term in loss_terms())
