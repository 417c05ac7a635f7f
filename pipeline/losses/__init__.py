"""The loss terms, one module each, and their weighted sum."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from pipeline.losses.term import LossTerm

_NO_TERMS = {"term", "objective", "evaluator"}
"""Modules that define no term; the last two import torch, which to read settings does not need."""


@cache
def loss_terms() -> tuple[type[LossTerm], ...]:
    """Returns the terms that the modules of this package define, by their ``order``."""
    names = {module.name for module in pkgutil.iter_modules(__path__)} - _NO_TERMS
    modules = [import_module(f"{__name__}.{name}") for name in names]
    terms = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, LossTerm)
        if value.__module__ == module.__name__
    ]
    return tuple(sorted(terms, key=lambda term: term.order))


def term_names() -> tuple[str, ...]:
    """Returns the names of all terms, as columns of a history have them."""
    return tuple(term.name for term in loss_terms())


def make_terms(settings: Mapping[str, Any]) -> tuple[LossTerm, ...]:
    """Returns every term as an experiment has set it.

    Args:
        settings: of the experiment, {key: value}; missing keys have their defaults.
    """
    return tuple(term(settings) for term in loss_terms())
