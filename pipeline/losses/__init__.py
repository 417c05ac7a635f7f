"""The loss terms, one module each, and their weighted sum."""

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from pipeline.losses.term import LossTerm

TERM_PACKAGES = ("pipeline.losses.feature_terms", "pipeline.losses.pixel_terms")
"""Every module in them is imported, without being named anywhere."""


@cache
def loss_terms() -> tuple[type[LossTerm], ...]:
    """Returns the terms that the modules of ``TERM_PACKAGES`` define, by their ``order``."""
    packages = [import_module(name) for name in TERM_PACKAGES]
    terms = {
        value
        for package in packages
        for module in pkgutil.iter_modules(package.__path__)
        for value in vars(import_module(f"{package.__name__}.{module.name}")).values()
        if isinstance(value, type) and issubclass(value, LossTerm) and hasattr(value, "name")
    }
    return tuple(sorted(terms, key=lambda term: term.order))


def make_terms(settings: Mapping[str, Any]) -> tuple[LossTerm, ...]:
    """Returns the terms with the settings of an experiment, {key: value}.

    An optional term of weight 0 is left out, and has no columns in the history.
    """
    terms = (term(settings) for term in loss_terms())
    return tuple(term for term in terms if term.weight or not term.optional)
