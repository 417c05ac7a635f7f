"""The loss terms, one module each, and their weighted sum."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from pipeline.losses.term import LossTerm

_NO_TERMS = {"term", "objective", "evaluator"}
"""The other modules. The last two import torch, which takes seconds that reading settings saves."""


@cache
def loss_terms() -> tuple[type[LossTerm], ...]:
    """Returns the terms that the modules of this package define, by their ``order``."""
    names = {module.name for module in pkgutil.iter_modules(__path__)} - _NO_TERMS
    modules = [import_module(f"{__name__}.{name}") for name in names]
    terms = [each for module in modules for each in vars(module).values() if _is_term(each, module)]
    return tuple(sorted(terms, key=lambda term: term.order))


def _is_term(value: Any, module: Any) -> bool:
    is_term = isinstance(value, type) and issubclass(value, LossTerm)
    return is_term and value.__module__ == module.__name__  # and not imported by the module


def make_terms(settings: Mapping[str, Any]) -> tuple[LossTerm, ...]:
    """Returns all terms with the settings of an experiment, {key: value}."""
    return tuple(term(settings) for term in loss_terms())
