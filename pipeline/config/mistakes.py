"""Sentences for the mistakes in params.yaml: the place, the value, the rule, "Did you mean"."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.config.schema import Experiment, Params
from pipeline.errors import UserError, masked, nearest
from pipeline.losses import make_terms
from pipeline.networks.layers import ARCHITECTURES, check_layers, needed_layers
from pipeline.settings import Section

_LONGEST_VALUE = 80  # characters


def choices(kind: str, word: str, known: Iterable[str]) -> str:
    """Returns the end of a message about an unknown word: the nearest known one, and all."""
    return f"{nearest(word, list(known))} The {kind} are {', '.join(known)}"


def contradictions(params: Params) -> list[str]:
    """Returns the mistakes between sections, each of which is valid by itself."""
    return [
        *_unknown_images(params),
        *_names_alike_but_for_case(params),
        *_figure_mistakes(params),
        *_network_mistakes(params),
    ]


def validation_mistakes(error: ValidationError) -> list[str]:
    """Returns a sentence for each mistake that a section's model finds."""
    # "[key]" is pydantic's name for a key itself.
    mistakes = [
        (tuple(str(key) for key in item["loc"] if key != "[key]"), _sentence(item))
        for item in error.errors()
    ]
    # A mistake in defaults is repeated in every experiment that takes the key from there.
    in_defaults = {(place[1:], text) for place, text in mistakes if place[:1] == ("defaults",)}
    return [
        f"{'.'.join(place) or 'a key'}: {text}"
        for place, text in mistakes
        if not (place[:1] == ("experiments",) and (place[2:], text) in in_defaults)
    ]


def _sentence(item: ErrorDetails) -> str:
    if item["type"] == "extra_forbidden":
        *parents, key = map(str, item["loc"])
        return f"unknown key{choices('keys', key, _model_at(parents).model_fields)}"
    if item["type"] == "missing":
        return "is missing. Add it"
    value = "" if isinstance(item["input"], dict) else f"{_shown(item['input'])}: "
    return value + item["msg"].removeprefix("Value error, ")


def _shown(value: object) -> str:
    """Returns a value as Python writes it, without passwords, and without its middle if long."""
    text, half = masked(repr(value)), _LONGEST_VALUE // 2
    return text if len(text) <= _LONGEST_VALUE else f"{text[:half]}...{text[-half:]}"


def _model_at(place: Sequence[str]) -> type[Section]:
    """Returns the model of the section at a place, such as ``experiments.NAME.lbfgs``."""
    model: type[Section] = Params
    for key in place:
        if key in model.model_fields:
            model = next(_sections_in(model.model_fields[key].annotation), model)
    return model


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections_in(argument)


def _unknown_images(params: Params) -> Iterator[str]:
    named = {f"cast.{role}": image for role, image in params.cast.items()}
    for name, experiment in params.experiments.items():
        named |= {f"experiments.{name}.{role}": each for role, each in experiment.images.items()}
    for place, image in named.items():
        if image not in params.images:
            known = choices("images", image, params.images)
            yield f"{place}: no image {image!r} in the catalogue{known}"


def _names_alike_but_for_case(params: Params) -> Iterator[str]:
    """Yields names that would share a file where the file system ignores case."""
    for section in ("images", "experiments", "figures"):
        seen: dict[str, str] = {}
        for name in getattr(params, section):
            other = seen.setdefault(name.casefold(), name)
            if other != name:
                yield f"{section}: {other!r} and {name!r} differ only in case. Rename one"


def _figure_mistakes(params: Params) -> Iterator[str]:
    for figure, layout in params.figures.items():
        unknown = [name for name in layout.experiments if name not in params.experiments]
        for name in unknown:
            known = choices("experiments", name, params.experiments)
            yield f"figures.{figure}.rows: no experiment {name!r}{known}"
        experiments = [params.experiments[n] for n in layout.experiments if n not in unknown]
        if not unknown and (rule := _unmet_rule(layout.measure, experiments)):
            yield f"figures.{figure}.measure: {layout.measure} {rule}"


def _unmet_rule(measure: str | None, experiments: Sequence[Experiment]) -> str:
    """Returns what a measurement needs and these experiments do not have; empty if nothing."""
    roles = {each.image_roles for each in experiments}
    if measure == "reconstruction":
        starts = {each.init for each in experiments}
        if len(roles) > 1 or len(min(roles)) != 1 or starts & set(min(roles)):
            return "needs experiments with one loss, content or style, none of which starts from it"
    if measure == "trade-off" and roles != {("content", "style")}:
        return "needs experiments that have both losses, with weights above 0"
    if measure == "starts":
        sizes = {(each.content, each.size, each.size_edge) for each in experiments}
        if len(sizes) > 1:
            return "needs experiments with one content image and one size"
    return ""


def _network_mistakes(params: Params) -> Iterator[str]:
    """Yields layers that a network of an experiment lacks, and useless warm starts."""
    for name, experiment in params.experiments.items():
        networks = {params.backbone.architecture: "backbone.architecture"}
        if experiment.warm_start and params.backbone.weights == "embedded":
            yield (
                f"experiments.{name}.warm_start: the whole run is on the embedded network. "
                "Set backbone.architecture: vgg19 and its weights, or warm_start: null"
            )
        elif experiment.warm_start:
            networks["vgg19-small"] = "its warm start"
        terms = make_terms(experiment.model_dump())
        for (network, reason), term in product(networks.items(), terms):
            try:
                check_layers(needed_layers(term.needs), ARCHITECTURES[network])
            except UserError as error:
                yield f"experiments.{name}.{term.layers_key}, for {reason} {network}: {error}"
