"""The total loss of an image: the sum of the loss terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy

import torch
from torch import Tensor, nn

from pipeline.losses.term import LossTerm, merged_needs
from pipeline.networks.frozen.extractor import FrozenFeatures
from pipeline.networks.layers import Context

MINIMISED = "minimised"
"""The key of what L-BFGS minimises: the total loss in the unit in which its largest weight is
``LARGEST_WEIGHT``. A common factor of all weights, however small or large, does not change it."""
LARGEST_WEIGHT = 1000.0
"""That of params.yaml's defaults, whose unit is therefore 1."""
ROUNDING = 1e-6
"""A loss is fulfilled where each part is at most this share of its ``LossTerm.sizes``. Rounding in
bfloat16 makes a hundredth of it, and rounding the image to 8 bits more."""


class Objective(nn.Module):
    """The total loss as a function of an image.

    With the content and style losses this is α·L_content + β·L_style (Gatys et al. 2016, eq. 7).
    **Differs:** further terms may be added. The terms are copied, and get their targets from the
    images, {role: (1, 3, H, W) float32, RGB in [0, 1]}; the masks of styles are among them. With a
    ``view``, all terms see what that function makes of the image.

    Attributes:
        factors: {term: {part: its weight in the total loss}}, of which the largest is
            ``LARGEST_WEIGHT``.
        unit: what a factor is multiplied by to be a weight as the settings give it.
    """

    def __init__(
        self,
        features: FrozenFeatures,
        terms: Iterable[LossTerm],
        images: Mapping[str, Tensor],
        view: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.view = view
        self.features = features
        self.terms = [copy(term) for term in terms]
        self.needs = merged_needs(self.terms)
        ending = "_content_mask"
        guides = {
            role.removesuffix(ending): mask
            for role, mask in images.items()
            if role.endswith(ending)
        }
        weights = _weights(self.terms)
        largest = _largest(weight for parts in weights.values() for weight in parts.values())
        self.unit = largest / LARGEST_WEIGHT
        self.factors = {
            term: {part: weight / largest * LARGEST_WEIGHT for part, weight in parts.items()}
            for term, parts in weights.items()
        }
        with torch.no_grad():
            for term in self.terms:
                term.set_targets(images, features)
            self.sizes = {term.name: term.sizes() for term in self.terms}
        self.context = self._context(guides)

    @property
    def names(self) -> list[str]:
        """The keys of ``forward``'s result but ``MINIMISED``, in its order."""
        parts = [f"{term.name}_{part}" for term in self.terms for part in term.named_parts]
        weighted = [f"{part}_weighted" for part in parts]
        return ["total", *(term.name for term in self.terms), *parts, *weighted]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Returns the losses of a (1, 3, H, W) float32 image of the content image's size, scalars.

        They are ``total``; the value of each term, weighted, under its name; each named part as
        ``NAME_PART``, before any weight, and as ``NAME_PART_weighted``, its share of the total; and
        the total as ``MINIMISED``.
        """
        image = image if self.view is None else self.view(image)
        statistics = self.features(image, self.needs, self.context)
        terms: dict[str, Tensor] = {}
        parts: dict[str, Tensor] = {}
        weighted: dict[str, Tensor] = {}
        for term in self.terms:
            # The parts of a term are recorded even if its weight is 0.
            losses = term.parts(image, statistics) if term.weight or term.named_parts else {}
            shares = {part: self.factors[term.name][part] * loss for part, loss in losses.items()}
            terms[term.name] = _sum(image, shares.values())
            for part in term.named_parts:
                name = f"{term.name}_{part}"
                parts[name], weighted[f"{name}_weighted"] = losses[part], self.unit * shares[part]
        minimised = _sum(image, terms.values())
        terms = {"total": minimised, **terms}
        terms = {name: self.unit * value for name, value in terms.items()}
        return {**terms, **parts, **weighted, MINIMISED: minimised}

    def is_fulfilled(self, losses: Mapping[str, Tensor]) -> bool:
        """Returns whether every part of the losses of an image is 0, up to ``ROUNDING``."""
        return all(
            float(losses[f"{term.name}_{part}_weighted" if part else term.name])
            <= ROUNDING * self.unit * factor * self.sizes[term.name][part]
            for term in self.terms
            for part, factor in self.factors[term.name].items()
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Objective:
        """Moves the targets together with the network."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for term in self.terms:
            term.targets = {part: fn(target) for part, target in term.targets.items()}
        guides = {name: fn(guide) for name, guide in self.context.guides.items()}
        self.context = self._context(guides)
        return self

    def _context(self, guides: Mapping[str, Tensor]) -> Context:
        references = {k: v for term in self.terms for k, v in term.references.items()}
        return Context(guides, references)


def _weights(terms: Sequence[LossTerm]) -> dict[str, dict[str, float]]:
    """Returns {term: {part: its weight in the total loss}}."""
    weights = {term.name: term.whole_weights for term in terms}
    others = _largest(sum(weights[term.name].values()) for term in terms if not term.relative)
    for term in terms:
        if term.relative:
            parts = weights[term.name].items()
            weights[term.name] = {part: others * weight for part, weight in parts}
    return weights


def _largest(weights: Iterable[float]) -> float:
    """Returns the largest weight, or 1 if all are 0."""
    return max(weights, default=0.0) or 1.0


def _sum(image: Tensor, values: Iterable[Tensor]) -> Tensor:
    return sum(values, image.new_zeros(()))
