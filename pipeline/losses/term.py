"""The base class of loss terms, and the types of their settings.

A term is one module of this package: a subclass of ``LossTerm``, found there by ``loss_terms``. It
says which statistics of which layers it needs, computes its targets from the input pictures, and
returns its value in parts. Its settings are keys of an experiment in params.yaml.

Two conventions exist for the constants of the content and style losses, and with them for the
weights:

``paper``  the equations as printed: content ½ Σ (F − P)², style 1 / (4 N²) Σ (G/M − A/M)².
``mean``   the authors' released code: the mean of the same squared differences,
           1 / (N M) Σ (F − P)² and 1 / N² Σ (G/M − A/M)².

N is the number of VGG-19's filters in the layer, and M = H'·W' the number of positions. In a small
network fewer channels have the same sums as N filters (``pipeline.networks.small_vgg``).

``paper`` needs a content weight that is smaller by 2 N M, a factor that grows with the picture;
under ``mean`` one ratio α/β serves every size, which is why it is the default. The paper prints
ratios from 1e-4 to 1e-1 under its figures. With our rescaling, which keeps dead filters weak
(``pipeline.networks.rescaling``), pictures look the same at ratios larger by a factor of 20 to
1000, mostly 100.

No module of a term imports torch when it is imported: reading params.yaml does not need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator

from pipeline.errors import UserError
from pipeline.networks.layers import LAYERS, Needs, check_layers
from pipeline.settings import Section, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.networks.frozen.statistics import Statistics

    Collect = Callable[[Tensor, Needs], Statistics]
    PairLoss = Callable[[Tensor, Tensor, int], Tensor]

CONVENTIONS = "mean", "paper"
WHOLE = ""
"""The one part of a term that is not divided into layers."""


class LossTerm:
    """One term of the total loss: its weight times the weighted sum of its parts.

    Args:
        settings: of an experiment, {key: value}. The term takes the keys of its ``Settings``.

    Attributes:
        name: its column in the history.
        order: its place in the sum and in the history.
        Settings: its keys of params.yaml, with their validation.
        weight_key, layers_key: the keys of its weight and, if it is a sum over layers, of
            {layer: weight}.
        image_roles: the input pictures that its targets come from, ``content`` or ``style``.
        sufficient: whether an experiment can have this term alone. It cannot where every picture
            is a minimum of the term.
        weight: the factor of the whole term.
        part_weights: {part: its weight}; parts are layers, or ``WHOLE`` alone.
        targets: {part: its target}, once ``set_targets`` was called.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    Settings: ClassVar[type[Section]]
    weight_key: ClassVar[str]
    layers_key: ClassVar[str] = ""
    image_roles: ClassVar[tuple[str, ...]] = ()
    sufficient: ClassVar[bool] = True

    def __init__(self, settings: Mapping[str, Any]) -> None:
        own = {key: settings[key] for key in self.Settings.model_fields if key in settings}
        self.settings = self.Settings.model_validate(own).model_dump()
        self.weight: float = self.settings[self.weight_key]
        self.part_weights: dict[str, float] = (
            self.settings[self.layers_key] if self.layers_key else {WHOLE: 1.0}
        )
        self.targets: dict[str, Tensor] = {}

    @property
    def active(self) -> bool:
        """Whether the term adds to the total loss."""
        return bool(self.weight * sum(self.part_weights.values()))

    @property
    def named_parts(self) -> list[str]:
        """The parts that have columns of their own; they are recorded even at a weight of 0."""
        return [part for part in self.part_weights if part != WHOLE]

    @property
    def needs(self) -> Needs:
        """The statistics that ``parts`` compares, {kind: layers}."""
        return {}

    def set_targets(self, images: Mapping[str, Tensor], collect: Collect) -> None:
        """Computes the targets from the input pictures.

        Args:
            images: {role: (1, 3, H, W) float32, RGB in [0, 1]}.
            collect: returns the statistics of an image, as ``FrozenFeatures`` does.
        """

    def parts(self, image: Tensor, statistics: Statistics) -> dict[str, Tensor]:
        """Returns {part: its loss}, scalars before any weight.

        Args:
            image: (1, 3, H, W) float32, RGB, 0 black and 1 white.
            statistics: of the image; all that the term needs, and perhaps more.
        """
        raise NotImplementedError


def merged_needs(terms: Iterable[LossTerm]) -> Needs:
    """Returns the statistics that any of the terms needs, each once."""
    merged: dict[str, tuple[str, ...]] = {}
    for term in terms:
        for kind, layers in term.needs.items():
            merged[kind] = tuple(dict.fromkeys([*merged.get(kind, ()), *layers]))
    return merged


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
    """Refuses unknown layers, and puts the others in the network's order."""
    try:
        check_layers(layers)
    except UserError as error:
        raise ValueError(str(error)) from error
    return {name: layers[name] for name in LAYERS if name in layers}


def _known_convention(name: str) -> str:
    if name not in CONVENTIONS:
        raise ValueError(f"{name!r} is none of {', '.join(CONVENTIONS)}")
    return name


LayerWeights = Annotated[
    dict[str, Weight], BeforeValidator(_equal_weights), AfterValidator(_known_layers)
]
"""{layer: weight}, or in params.yaml a list of layers."""
LossConvention = Annotated[str, AfterValidator(_known_convention)]
