"""The style images of an experiment, and the base class of loss terms that compare with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, TypeAdapter

from pipeline.errors import UserError
from pipeline.losses.term import LayerTerm
from pipeline.networks.layers import LAYERS, Context, Needs, check_layers
from pipeline.settings import Name, Section

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.losses.term import Collect
    from pipeline.networks.frozen.statistics import Statistics

MOST_STYLES = 32


def _as_mapping(image: Any) -> Any:
    """Lets a name stand for a mapping with that image and nothing else."""
    return image if isinstance(image, dict | Section) else {"image": image}


def _check_known(layers: list[str]) -> list[str]:
    try:
        check_layers(layers)
    except UserError as error:
        raise ValueError(str(error)) from error
    return layers


class Mask(Section):
    """A picture that says where: white is inside, black outside, grey a soft edge.

    With a ``label``, a colour, the pixels of exactly that colour are inside, and no others.
    """

    image: Name
    label: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] | None = None


OptionalMask = Annotated[Mask, BeforeValidator(_as_mapping)] | None


class Style(Section):
    """One style image.

    Attributes:
        weight: λ, of which only the ratio to that of the other styles counts.
        scale: edges of the style image, as multiples of those that ``style_resize`` gives it.
        layers: those whose style it is, in place of all layers of the loss.
        content_mask: the part of the content image that gets this style, in place of all of it.
        style_mask: the part of the style image that it is taken from, in place of all of it.
    """

    image: Name
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    scale: Annotated[float, Field(ge=0.05, le=20)] = 1.0
    layers: Annotated[list[str], Field(min_length=1), AfterValidator(_check_known)] | None = None
    content_mask: OptionalMask = None
    style_mask: OptionalMask = None


def _as_list(styles: Any) -> Any:
    return styles if isinstance(styles, list) else [styles]


def _shortest(styles: list[Style]) -> Any:
    """Returns styles as params.yaml would have them: a name, where that says all."""
    written = [style.model_dump(exclude_defaults=True) for style in styles]
    names = [style["image"] if list(style) == ["image"] else style for style in written]
    return names[0] if len(names) == 1 else names


Styles = Annotated[
    list[Annotated[Style, BeforeValidator(_as_mapping)]],
    Field(min_length=1, max_length=MOST_STYLES),
    BeforeValidator(_as_list),
    PlainSerializer(_shortest),
]
"""The key ``style`` of an experiment: a name, a mapping, or a list of them."""
_STYLES: TypeAdapter[list[Style]] = TypeAdapter(Styles)


def styles_by_role(styles: Sequence[Style]) -> dict[str, Style]:
    """Returns {role of the picture: style}: ``style``, or ``style_1``, ``style_2`` … of several."""
    if len(styles) == 1:
        return {"style": styles[0]}
    return {f"style_{number}": style for number, style in enumerate(styles, 1)}


def styles_of(settings: Mapping[str, Any]) -> dict[str, Style]:
    """Returns {role: style} of the settings of an experiment, or of one without a named style."""
    return styles_by_role(_STYLES.validate_python(settings.get("style", "style")))


def shares(styles: Mapping[str, Style]) -> dict[str, float]:
    """Returns {role: λ}, which add up to 1."""
    whole = sum(style.weight for style in styles.values())
    return {role: style.weight / whole for role, style in styles.items()}


def weighted_sum(weighted: Iterable[tuple[float, Tensor]]) -> Tensor:
    """Returns Σ λ x of pairs (λ, x), of which there is at least one."""
    return reduce(lambda total, each: total + each, (share * value for share, value in weighted))


class StyleTerm(LayerTerm):
    """A term that compares a statistic of some layers with those of the style images.

    The loss of a layer is Σ_s λ_s L_s, where L_s compares with style s and Σ_s λ_s = 1 over the
    styles that have the layer. A style with a ``content_mask`` is compared with the statistic of
    that region alone (Gatys et al. 2017, §4). A further term has those of its layers that are
    among the ``style_layers``: an experiment without any has no style.
    """

    image_roles = ("style",)

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self.styles = styles_of(settings)
        listed = settings.get("style_layers", self.part_weights)
        self.part_weights = {k: v for k, v in self.part_weights.items() if k in listed}

    def kind(self, role: str) -> str:
        """Returns the kind of the statistic that is compared with a style."""
        guided = self.styles[role].content_mask is not None
        return f"{self.statistic}@{role}" if guided else self.statistic

    def shares(self, layer: str) -> dict[str, float]:
        """Returns {role: λ}, which add up to 1, of the styles that have a layer."""
        has = {r: s for r, s in self.styles.items() if s.layers is None or layer in s.layers}
        return shares(has)

    def compared_styles(self, layer: str) -> dict[str, float]:
        """Returns {role: λ} of the styles in whose place a target of the layer stands."""
        return self.shares(layer)

    def measure(self, value: Tensor) -> Tensor:
        """Returns what ``loss`` compares, from the statistic of the image or of a style."""
        return value

    @property
    def needs(self) -> Needs:
        needs: dict[str, list[str]] = {}
        for layer in self.part_weights:
            for kind in dict.fromkeys(map(self.kind, self.compared_styles(layer))):
                needs.setdefault(kind, []).append(layer)
        return needs

    def set_targets(self, images: Mapping[str, Tensor], collect: Collect) -> None:
        self.targets = {}
        for role in self.styles:
            layers = [layer for layer in self.part_weights if role in self.shares(layer)]
            mask = images.get(f"{role}_mask")
            kind = self.statistic if mask is None else f"{self.statistic}@{role}"
            context = Context({} if mask is None else {role: mask})
            for layer, value in collect(images[role], {kind: layers}, context)[kind].items():
                self.targets[f"{layer}@{role}"] = self.measure(value)

    def sizes(self) -> dict[str, float]:
        """Returns the losses of features that are all 0."""
        nothing = {key: target.new_zeros(target.shape) for key, target in self.targets.items()}
        losses = self._compared(lambda role, layer: nothing[f"{layer}@{role}"])
        return {layer: float(loss) for layer, loss in losses.items()}

    def parts(self, image: Tensor, statistics: Statistics) -> dict[str, Tensor]:
        measured = {
            (kind, layer): self.measure(statistics[kind][layer])
            for kind, layers in self.needs.items()
            for layer in layers
        }
        return self._compared(lambda role, layer: measured[self.kind(role), layer])

    def _compared(self, value: Callable[[str, str], Tensor]) -> dict[str, Tensor]:
        """Returns the loss of each layer; ``value(role, layer)`` is compared with that style's."""
        losses = {}
        for layer in self.part_weights:
            filters = LAYERS[layer].channels_out
            losses[layer] = weighted_sum(
                (share, self.loss(value(role, layer), self.targets[f"{layer}@{role}"], filters))
                for role, share in self.compared_styles(layer).items()
            )
        return losses
