"""Error messages for mistakes in params.yaml: place, value, rule, and the nearest known name."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.config.schema import STARTS, Experiment, Grid, Params
from pipeline.errors import UserError, nearest, shown
from pipeline.networks.layers import ARCHITECTURES, check_layers, needed_layers
from pipeline.settings import Section, sections_in

# A contact sheet and a page of the report can show as many; `starts` compares each two.
MOST_FIGURE_CELLS, MOST_STARTS = 400, 30
MOST_NAMED = 100
"""Names that a message lists."""


class Mistake(NamedTuple):
    """A mistake in params.yaml: the keys that lead to it, and a sentence."""

    place: tuple[str, ...]
    text: str


def choices(kind: str, word: str, known: Iterable[str]) -> str:
    """Returns the end of a message about an unknown word: the nearest known one, and all."""
    names = list(map(str, known))
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return f"{nearest(word, names)} The {kind} are {', '.join(names[:MOST_NAMED])}{more}"


def sentences(mistakes: Iterable[Mistake], grids: Any) -> list[str]:
    """Returns a sentence for each mistake, one for all experiments or cells that repeat it.

    ``grids`` is that section of params.yaml, in which the valid grids are of type ``Grid``.
    """
    cells = _cells_of(grids if isinstance(grids, dict) else {})
    # An experiment has the mistakes of the defaults that it takes, and a cell those of its base.
    in_defaults, in_bases = set(), set()
    alike: dict[Mistake, list[str]] = {}  # {mistake: the cells that have it}
    for place, text in mistakes:
        if place[:1] == ("defaults",):
            in_defaults.add((place[1:], text))
        elif place[:1] == ("experiments",) and place[1:2] and place[1] not in cells:
            in_bases.add((place[2:], text))
    for place, text in mistakes:
        if place[:1] != ("experiments",) or not place[1:2]:
            alike[Mistake(place, text)] = []
        elif (place[2:], text) in in_defaults:
            continue
        elif place[1] not in cells:
            alike[Mistake(place, text)] = []
        elif (place[2:], text) not in in_bases:
            grid, axes = cells[place[1]]
            axis = next((key for key in axes if _leads_to(key.split("."), place[2:])), None)
            if axis is None:
                alike.setdefault(Mistake(("grids", grid, *place[2:]), text), []).append(place[1])
            else:
                alike[Mistake(("grids", grid, "over", axis), text)] = []
    return [
        f"{'.'.join(place) or 'a key'}{_named(with_it)}: {text}"
        for (place, text), with_it in alike.items()
    ]


def _cells_of(grids: Mapping[Any, Any]) -> dict[str, tuple[str, list[str]]]:
    """Returns {cell: (its grid, the keys of its axes)}."""
    return {
        cell: (name, list(grid.over))
        for name, grid in grids.items()
        if isinstance(grid, Grid)
        for cell, _ in grid.cells(name)
    }


def _leads_to(key: Sequence[str], place: Sequence[str]) -> bool:
    shortest = min(len(key), len(place))
    return shortest > 0 and list(key[:shortest]) == list(place[:shortest])


def _named(cells: Sequence[str]) -> str:
    """Returns the first of some cells and how many there are more, for a place in a message."""
    if not cells:
        return ""
    return f", cell {cells[0]}{f' and {len(cells) - 1:,} more' if cells[1:] else ''}"


def contradictions(params: Params) -> list[Mistake]:
    """Returns the mistakes between sections, each of which is valid by itself."""
    return [
        *_unknown_images(params),
        *_names_alike_but_for_case(params),
        *_figure_mistakes(params),
        *_network_mistakes(params),
    ]


def validation_mistakes(error: ValidationError, content: Any) -> list[Mistake]:
    """Returns the mistakes that the sections' models find in the content of a file."""
    return [Mistake(_as_written(item["loc"], content), _sentence(item)) for item in error.errors()]


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
    if item["type"] in ("model_type", "dict_type"):
        return f"{shown(item['input'])}: a mapping of keys to values is needed"
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


def _unknown_images(params: Params) -> Iterator[Mistake]:
    """Yields names of no image, and roles of the cast with the name of one."""
    for role, image in params.cast.items():
        if role in params.images:
            yield Mistake(("cast", role), "an image has that name too. Rename one of them")
        if image not in params.images:
            known = choices("images", image, params.images)
            yield Mistake(("cast", role), f"no image {image!r} in the catalogue{known}")
    for start in STARTS:
        if start in params.images or start in params.cast:
            section = "images" if start in params.images else "cast"
            yield Mistake((section, start), "init has a value of that name. Rename the picture")
    known_names = [*params.images, *params.cast.values()]  # a mistake in the cast is said once
    for name, experiment in params.experiments.items():
        for role, image in experiment.images.items():
            if image not in known_names:
                known = nearest(image, [*params.images, *params.cast])
                known += f" The images are {', '.join(params.images)}"
                known += f"; the roles are {', '.join(params.cast)}" if params.cast else ""
                if role == "init":
                    known += f"; or init is {', '.join(STARTS)}"
                text = f"no image {image!r} in the catalogue{known}"
                yield Mistake(("experiments", name, role), text)


def _names_alike_but_for_case(params: Params) -> Iterator[Mistake]:
    """Yields names that would share a file where the file system ignores case."""
    for section in ("images", "experiments", "figures", "grids"):
        seen: dict[str, str] = {}
        for name in getattr(params, section):
            other = seen.setdefault(name.casefold(), name)
            if other != name:
                text = f"{other!r} and {name!r} differ only in case. Rename one"
                yield Mistake((section,), text)


def _figure_mistakes(params: Params) -> Iterator[Mistake]:
    for figure, layout in params.figures.items():
        rows = ("figures", figure, "rows")
        if (cells := len(layout.rows) * max(map(len, layout.rows))) > MOST_FIGURE_CELLS:
            yield Mistake(rows, f"{cells:,} cells. Make figures of up to {MOST_FIGURE_CELLS}")
        unknown = [name for name in layout.experiments if name not in params.experiments]
        for name in unknown:
            known = choices("experiments", name, params.experiments)
            yield Mistake(rows, f"no experiment {name!r}{known}")
        if layout.measure and not unknown:
            experiments = [params.experiments[name] for name in layout.experiments]
            if rule := _unmet_rule(layout.measure, experiments):
                yield Mistake(("figures", figure, "measure"), f"{layout.measure} {rule}")


def _unmet_rule(measure: str, experiments: Sequence[Experiment]) -> str:
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


def _network_mistakes(params: Params) -> Iterator[Mistake]:
    """Yields layers that a network of an experiment lacks, and useless warm starts."""
    for name, experiment in params.experiments.items():
        networks = {params.backbone.architecture: "backbone.architecture"}
        if (
            any(size.network == "embedded" for size in experiment.sizes)
            and params.backbone.weights == "embedded"
        ):
            yield Mistake(
                ("experiments", name, "sizes"),
                "the whole run is on the embedded network. Leave out network: embedded, or set "
                "backbone.architecture: vgg19 and its weights",
            )
        if experiment.warm_start and params.backbone.weights == "embedded":
            yield Mistake(
                ("experiments", name, "warm_start"),
                "the whole run is on the embedded network. Set backbone.architecture: vgg19 and "
                "its weights, or warm_start: null",
            )
        elif experiment.uses_embedded_network:
            networks["vgg19-small"] = "its warm start" if experiment.warm_start else "its sizes"
        for (network, reason), term in product(networks.items(), experiment.terms()):
            try:
                check_layers(needed_layers(term.needs), ARCHITECTURES[network])
            except UserError as error:
                key = f"{term.layers_key}, for {reason} {network}"
                yield Mistake(("experiments", name, key), str(error))
