"""The total loss of an image: the sum of the loss terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy

import torch
from torch import Tensor, nn

from pipeline.losses.term import LossTerm, merged_needs
from pipeline.networks.frozen.extractor import FrozenFeatures


class Objective(nn.Module):
    """The total loss as a function of an image.

    With the content and style losses this is α·L_content + β·L_style (Gatys et al. 2016, eq. 7).
    **Differs:** further terms may be added. The terms are copied, and get their targets from the
    images, {role: (1, 3, H, W) float32, RGB in [0, 1]}.
    """

    def __init__(
        self, features: FrozenFeatures, terms: Iterable[LossTerm], images: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.features = features
        self.terms = [copy(term) for term in terms]
        self.needs = merged_needs(self.terms)
        with torch.no_grad():
            for term in self.terms:
                term.set_targets(images, features)

    @property
    def names(self) -> list[str]:
        """The keys of ``forward``'s result, in its order."""
        parts = [f"{term.name}_{part}" for term in self.terms for part in term.named_parts]
        weighted = [f"{part}_weighted" for part in parts]
        return ["total", *(term.name for term in self.terms), *parts, *weighted]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Returns the losses of a (1, 3, H, W) float32 image of the content image's size, scalars.

        They are ``total``; the value of each term, weighted, under its name; each named part as
        ``NAME_PART``, before any weight, and as ``NAME_PART_weighted``, its share of the total.
        """
        statistics = self.features(image, self.needs)
        terms: dict[str, Tensor] = {}
        parts: dict[str, Tensor] = {}
        weighted: dict[str, Tensor] = {}
        for term in self.terms:
            # The parts of a term are recorded even if its weight is 0.
            losses = term.parts(image, statistics) if term.weight or term.named_parts else {}
            terms[term.name] = term.weight * _sum(
                image, (term.part_weights[part] * loss for part, loss in losses.items())
            )
            for part in term.named_parts:
                name, factor = f"{term.name}_{part}", term.weight * term.part_weights[part]
                parts[name], weighted[f"{name}_weighted"] = losses[part], factor * losses[part]
        return {"total": _sum(image, terms.values()), **terms, **parts, **weighted}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Objective:
        """Moves the targets together with the network."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for term in self.terms:
            term.targets = {part: fn(target) for part, target in term.targets.items()}
        return self


def _sum(image: Tensor, values: Iterable[Tensor]) -> Tensor:
    return sum(values, image.new_zeros(()))
