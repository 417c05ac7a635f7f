"""Error messages for mistakes in params.yaml: place, value, rule, and the nearest known name."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.config.schema import STARTS, Experiment, Params
from pipeline.errors import UserError, nearest, shown
from pipeline.networks.layers import ARCHITECTURES, check_layers, needed_layers
from pipeline.settings import Section, sections_in

# A contact sheet and a page of the report can show as many; `starts` compares each two.
MOST_CELLS, MOST_STARTS = 400, 30


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


def validation_mistakes(error: ValidationError, content: Any) -> list[str]:
    """Returns a sentence for each mistake that a section's model finds in the content of a file."""
    mistakes = [(_as_written(item["loc"], content), _sentence(item)) for item in error.errors()]
    # A mistake in defaults is repeated in every experiment that takes the key from there.
    in_defaults = {(place[1:], text) for place, text in mistakes if place[:1] == ("defaults",)}
    return [
        f"{'.'.join(place) or 'a key'}: {text}"
        for place, text in mistakes
        if not (place[:1] == ("experiments",) and (place[2:], text) in in_defaults)
    ]


def _as_written(place: Iterable[int | str], content: Any) -> tuple[str, ...]:
    """Returns the keys to a value in a file, from those to it in the models.

    A name may stand for a mapping with that name, and either of them for a list with one item.
    """
    written = []
    for key in place:
        if key == "[key]":  # pydantic's name for a key itself
            continue
        if isinstance(content, dict) and isinstance(key, int) and key not in content:
            continue
        if isinstance(content, dict):
            content = content.get(key)
        elif isinstance(content, list) and isinstance(key, int):
            content = content[key]
        else:
            break
        written.append(str(key))
    return tuple(written)


def _sentence(item: ErrorDetails) -> str:
    if item["type"] == "extra_forbidden":
        *parents, key = map(str, item["loc"])
        return f"unknown key{choices('keys', key, _model_at(parents).model_fields)}"
    if item["type"] == "missing":
        return "is missing. Add it"
    if item["type"] == "string_type":
        item["msg"] += ". Put text in quotes"
    value = "" if isinstance(item["input"], dict) else f"{shown(item['input'])}: "
    return value + item["msg"].removeprefix("Value error, ")


def _model_at(place: Sequence[str]) -> type[Section]:
    """Returns the model of the section at a place, such as ``experiments.NAME.lbfgs``."""
    model: type[Section] = Params
    for key in place:
        if key in model.model_fields:
            model = next(sections_in(model.model_fields[key].annotation), model)
    return model


def _unknown_images(params: Params) -> Iterator[str]:
    """Yields names of no image, and roles of the cast with the name of one."""
    for role, image in params.cast.items():
        if role in params.images:
            yield f"cast.{role}: an image has that name too. Rename one of them"
        if image not in params.images:
            known = choices("images", image, params.images)
            yield f"cast.{role}: no image {image!r} in the catalogue{known}"
    for start in STARTS:
        if start in params.images or start in params.cast:
            section = "images" if start in params.images else "cast"
            yield f"{section}.{start}: init has a value of that name. Rename the picture"
    known_names = [*params.images, *params.cast.values()]  # a mistake in the cast is said once
    for name, experiment in params.experiments.items():
        for role, image in experiment.images.items():
            if image not in known_names:
                known = nearest(image, [*params.images, *params.cast])
                known += f" The images are {', '.join(params.images)}"
                known += f"; the roles are {', '.join(params.cast)}" if params.cast else ""
                if role == "init":
                    known += f"; or init is {', '.join(STARTS)}"
                yield f"experiments.{name}.{role}: no image {image!r} in the catalogue{known}"


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
        if (cells := len(layout.rows) * max(map(len, layout.rows))) > MOST_CELLS:
            yield f"figures.{figure}.rows: {cells:,} cells. Make figures of up to {MOST_CELLS}"
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
        if any(set(each.used_images) - {"init"} != set(min(roles)) for each in experiments):
            return "needs experiments with one picture: with one style, and without masks"
    if measure == "trade-off" and roles != {("content", "style")}:
        return "needs experiments that have both losses, with weights above 0"
    if measure == "starts":
        sizes = {(each.content, each.size, each.size_edge) for each in experiments}
        if len(sizes) > 1 or len(experiments) > MOST_STARTS:
            return f"needs up to {MOST_STARTS} experiments, with one content image and one size"
    return ""


def _network_mistakes(params: Params) -> Iterator[str]:
    """Yields layers that a network of an experiment lacks, and useless warm starts."""
    for name, experiment in params.experiments.items():
        networks = {params.backbone.architecture: "backbone.architecture"}
        if (
            any(size.network == "embedded" for size in experiment.sizes)
            and params.backbone.weights == "embedded"
        ):
            yield (
                f"experiments.{name}.sizes: the whole run is on the embedded network. Leave out "
                "network: embedded, or set backbone.architecture: vgg19 and its weights"
            )
        if experiment.warm_start and params.backbone.weights == "embedded":
            yield (
                f"experiments.{name}.warm_start: the whole run is on the embedded network. "
                "Set backbone.architecture: vgg19 and its weights, or warm_start: null"
            )
        elif experiment.uses_embedded_network:
            networks["vgg19-small"] = "its warm start" if experiment.warm_start else "its sizes"
        for (network, reason), term in product(networks.items(), experiment.terms()):
            try:
                check_layers(needed_layers(term.needs), ARCHITECTURES[network])
            except UserError as error:
                yield f"experiments.{name}.{term.layers_key}, for {reason} {network}: {error}"
