"""The base classes of loss terms, and the types of their settings.

``docs/architecture.md`` explains how to add a term. Its module imports torch for annotations alone,
since reading params.yaml must not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator

from pipeline.errors import UserError
from pipeline.networks.layers import LAYERS, Context, Needs, check_layers
from pipeline.settings import Section, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.networks.frozen.statistics import Statistics

    Collect = Callable[[Tensor, Needs, Context], Statistics]

WHOLE = ""
"""The one part of a term that has no parts of its own."""


class LossTerm:
    """One term of the total loss: its weight times the weighted sum of its parts.

    A part is a layer, or ``WHOLE``. The term takes its own keys from an experiment's settings.
    """

    name: ClassVar[str]
    """Its column in the history."""
    order: ClassVar[int]
    """Its place in the sum and in the history."""
    Settings: ClassVar[type[Section]]
    """Its keys of params.yaml."""
    weight_key: ClassVar[str]
    layers_key: ClassVar[str] = ""
    image_roles: ClassVar[tuple[str, ...]] = ()
    """The input pictures, ``content`` or ``style``, that its targets come from."""
    sufficient: ClassVar[bool] = True
    """Whether an experiment may have this term alone; not if every picture is a minimum of it."""
    optional: ClassVar[bool] = False
    """Whether a weight of 0 leaves the term out, with its columns of the history."""
    relative: ClassVar[bool] = False
    """Whether its weight is a multiple of the largest weight of the other terms."""
    images_per_style: ClassVar[int] = 0
    """Images of the content image's size whose memory it takes for each style image."""
    tileable: ClassVar[bool] = True
    """Whether it needs only statistics that are means over positions, which tiles add up to."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        own = {key: settings[key] for key in self.Settings.model_fields if key in settings}
        self.settings = self.Settings.model_validate(own).model_dump()
        self.weight: float = self.settings[self.weight_key]
        self.part_weights: dict[str, float] = self.settings.get(self.layers_key, {WHOLE: 1.0})
        self.targets: dict[str, Tensor] = {}

    @property
    def active(self) -> bool:
        """Whether the term adds to the total loss."""
        return any(self.whole_weights.values())

    @property
    def whole_weights(self) -> dict[str, float]:
        """{part: its weight in the total loss}."""
        return {part: self.weight * weight for part, weight in self.part_weights.items()}

    @property
    def named_parts(self) -> list[str]:
        """The parts with columns of their own, which are recorded even if the weight is 0."""
        return [part for part in self.part_weights if part != WHOLE]

    @property
    def needs(self) -> Needs:
        """The statistics that ``parts`` needs of the image, and ``set_targets`` of the pictures."""
        return {}

    def set_targets(self, images: Mapping[str, Tensor], collect: Collect) -> None:
        """Computes ``targets`` from {role: (1, 3, H, W) float32, RGB in [0, 1]}.

        ``collect(image, needs, context)`` is ``FrozenFeatures.forward``.
        """

    @property
    def references(self) -> dict[str, Mapping[str, Tensor]]:
        """The ``references`` of a ``Context`` that the statistics of the image need."""
        return {}

    def sizes(self) -> dict[str, float]:
        """Returns {part: a loss that is not small}, beside which rounding can be told from 0."""
        return dict.fromkeys(self.part_weights, 1.0)

    def parts(self, image: Tensor, statistics: Statistics) -> dict[str, Tensor]:
        """Returns {part: its loss}, scalars before any weight.

        The image is (1, 3, H, W) float32, RGB, 0 black and 1 white; its statistics are those that
        the term needs, or more.
        """
        raise NotImplementedError


class LayerTerm(LossTerm):
    """A term that compares a statistic of some layers with that of an input picture."""

    statistic: ClassVar[str]
    """Its kind, a key of ``networks.frozen.statistics.STATISTICS``."""
    keeps_activations: ClassVar[bool] = False
    """Whether a target is as large as the activations of its picture."""
    temporaries: ClassVar[int] = 0
    """Bytes per activation that an evaluation takes beside the statistic and the target."""

    def loss(self, value: Tensor, target: Tensor, filters: int) -> Tensor:
        """Returns the loss of a layer, a scalar, from its statistic in the image and its target.

        ``filters`` is N, VGG-19's number of filters in the layer. A small network has the same sums
        of squares in fewer channels (``pipeline.networks.small_vgg``).
        """
        raise NotImplementedError

    @property
    def needs(self) -> Needs:
        return {self.statistic: tuple(self.part_weights)}

    def sizes(self) -> dict[str, float]:
        """Returns the losses of features that are all 0."""
        nothing = {layer: target.new_zeros(target.shape) for layer, target in self.targets.items()}
        return {part: float(loss) for part, loss in self._losses(nothing).items()}

    def parts(self, image: Tensor, statistics: Statistics) -> dict[str, Tensor]:
        return self._losses(statistics[self.statistic])

    def _losses(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            layer: self.loss(values[layer], self.targets[layer], LAYERS[layer].channels_out)
            for layer in self.part_weights
        }


def merged_needs(terms: Iterable[LossTerm]) -> Needs:
    """Returns the statistics that any of the terms needs, each once."""
    merged: dict[str, tuple[str, ...]] = {}
    for term in terms:
        for kind, layers in term.needs.items():
            merged[kind] = tuple(dict.fromkeys([*merged.get(kind, ()), *layers]))
    return merged


def _equal_weights(layers: Any) -> Any:
    """Gives the layers of a list equal weights that add up to 1: the paper's w_l = 1/5."""
    if isinstance(layers, str):
        raise ValueError(f"a list is needed. Write [{layers}]")
    if not isinstance(layers, list) or not all(isinstance(name, str) for name in layers):
        return layers
    if len(set(layers)) < len(layers):
        raise ValueError("a layer stands twice. Give it a larger weight: {conv4_2: 2.0}")
    return {name: 1 / len(layers) for name in layers}


def _known_layers(layers: dict[str, float]) -> dict[str, float]:
    """Refuses unknown layers, and puts the others into the network's order."""
    try:
        check_layers(layers)
    except UserError as error:
        raise ValueError(str(error)) from error
    return {name: layers[name] for name in LAYERS if name in layers}


LayerWeights = Annotated[
    dict[str, Weight], BeforeValidator(_equal_weights), AfterValidator(_known_layers)
]
"""{layer: weight}; in params.yaml also a list of layers."""
LossConvention = Literal["mean", "paper"]
"""Constants of the content and style losses: means of squared differences, as in the authors' code,
or the equations as printed. ``paper`` needs a content weight that is smaller by 2 N M, a factor
that grows with the picture; with ``mean`` one ratio α/β serves every size (``docs/method.md``)."""
STYLE_LAYERS = dict.fromkeys(("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"), 1 / 5)
"""The paper's layers and weights w_l, for further losses that compare with the style images."""
