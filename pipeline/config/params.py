"""Reads params.yaml: experiments completed from the defaults, mistakes as sentences.

Every stage reads the whole file through ``read_params``. DVC itself reads it before any stage
runs, and says some mistakes in its own words; ``python -m pipeline.config.params`` is there first.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from reprlib import Repr
from typing import Any

from pydantic import ValidationError

from pipeline.config.schema import (
    Backbone,
    CataloguedImage,
    Checkpointing,
    Distillation,
    EarlyStop,
    Experiment,
    Figure,
    Lbfgs,
    Params,
    Settings,
    Tracking,
)
from pipeline.config.yaml_file import read_mapping
from pipeline.errors import UserError, command_line, nearest
from pipeline.losses import make_terms
from pipeline.networks.layers import ARCHITECTURES, check_layers, needed_layers
from pipeline.settings import Section

PARAMS_FILE = Path("params.yaml")
MISTAKES_SHOWN = 20

_SECTION_MODELS: dict[str, type[Section]] = {
    "images": CataloguedImage,
    "backbone": Backbone,
    "defaults": Settings,
    "lbfgs": Lbfgs,
    "early_stop": EarlyStop,
    "experiments": Experiment,
    "figures": Figure,
    "distillation": Distillation,
    "tracking": Tracking,
    "checkpoints": Checkpointing,
}


def read_params(path: Path = PARAMS_FILE) -> Params:
    """Returns the parameters in a file, each experiment completed from ``defaults``.

    An experiment's keys replace those of ``defaults``; the keys of its ``lbfgs`` replace one by
    one.

    Raises:
        UserError: no such file, not YAML, or mistakes, each named with its place and the rule.
    """
    content = read_mapping(path, list(Params.model_fields))
    try:
        params = Params.model_validate(_completed(content))
    except ValidationError as error:
        mistakes = _mistakes(error)
        shown = mistakes[:MISTAKES_SHOWN]
        if more := len(mistakes) - len(shown):
            shown.append(f"and {more} more")
        lines = "\n  ".join([f"{path} has {len(mistakes)} mistake(s):", *shown])
        raise UserError(lines) from None
    _check_image_names(path, params)
    _check_case(path, params)
    _check_figures(path, params)
    _check_layers(path, params)
    return params


def find_experiment(params: Params, name: str) -> Experiment:
    """Returns the experiment of that name.

    Raises:
        UserError: there is none.
    """
    if name not in params.experiments:
        known = list(params.experiments)
        hint = nearest(name, known)
        raise UserError(f"no experiment {name!r}{hint} The experiments are {', '.join(known)}")
    return params.experiments[name]


def _completed(content: dict[str, Any]) -> dict[str, Any]:
    defaults, experiments = content.get("defaults"), content.get("experiments")
    if not isinstance(defaults, dict) or not isinstance(experiments, dict):
        return content
    known = {key: value for key, value in defaults.items() if key in Settings.model_fields}
    merged = {
        name: _merged(known, changes or {}) if isinstance(changes, dict | None) else changes
        for name, changes in experiments.items()
    }
    return {**content, "experiments": merged}


def _merged(defaults: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {**defaults, **changes}
    if isinstance(defaults.get("lbfgs"), dict) and isinstance(changes.get("lbfgs"), dict):
        both["lbfgs"] = {**defaults["lbfgs"], **changes["lbfgs"]}
    return both


def _mistakes(error: ValidationError) -> list[str]:
    found = [(_place(item["loc"]), _sentence(dict(item))) for item in error.errors()]
    # A mistake in defaults comes back in every experiment that leaves the key to them.
    of_defaults = {(place[1:], sentence) for place, sentence in found if place[:1] == ("defaults",)}
    return [
        f"{'.'.join(place) or 'a key'}: {sentence}"
        for place, sentence in found
        if not (place[:1] == ("experiments",) and (place[2:], sentence) in of_defaults)
    ]


def _place(keys: tuple[str | int, ...]) -> tuple[str, ...]:
    return tuple(str(key) for key in keys if key != "[key]")  # pydantic's, of a key itself


def _sentence(item: dict[str, Any]) -> str:
    if item["type"] == "extra_forbidden":
        *parents, key = map(str, item["loc"])
        section = (
            parents[-1] if parents[-1:] in (["lbfgs"], ["early_stop"]) else "".join(parents[:1])
        )
        model = _SECTION_MODELS.get(section, Params)
        known = list(model.model_fields)
        return f"unknown key{nearest(key, known)} The keys are {', '.join(known)}"
    if item["type"] == "missing":
        return "is missing. Add it"
    message = str(item["msg"]).removeprefix("Value error, ")
    return message if isinstance(item["input"], dict) else f"{_shown(item['input'])}: {message}"


_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def _shown(value: Any) -> str:
    return _SHORT.repr(value)


def _check_image_names(path: Path, params: Params) -> None:
    known = list(params.images)
    named = {f"cast.{role}": image for role, image in params.cast.items()}
    for name, experiment in params.experiments.items():
        named[f"experiments.{name}.content"] = experiment.content
        named[f"experiments.{name}.style"] = experiment.style
    for place, image in named.items():
        if image not in known:
            raise UserError(
                f"{path}: {place}: no image {image!r} in the catalogue{nearest(image, known)} "
                f"The images are {', '.join(known)}"
            )


def _check_figures(path: Path, params: Params) -> None:
    known = list(params.experiments)
    for figure, layout in params.figures.items():
        for name in layout.experiments:
            if name not in known:
                raise UserError(
                    f"{path}: figures.{figure}.rows: no experiment {name!r}{nearest(name, known)} "
                    f"The experiments are {', '.join(known)}"
                )
        experiments = [params.experiments[name] for name in layout.experiments]
        if layout.measure and (rule := _unmeasurable(layout.measure, experiments)):
            raise UserError(f"{path}: figures.{figure}.measure: {layout.measure} {rule}")


def _unmeasurable(measure: str, experiments: Sequence[Experiment]) -> str:
    """Returns what a measurement requires that these experiments lack, or an empty text."""
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


def _check_case(path: Path, params: Params) -> None:
    """Refuses names that would share a file where the case of letters does not count."""
    for section in (params.images, params.experiments, params.figures):
        seen: dict[str, str] = {}
        for name in section:
            other = seen.setdefault(name.casefold(), name)
            if other != name:
                raise UserError(f"{path}: {other!r} and {name!r} differ only in case. Rename one")


def _check_layers(path: Path, params: Params) -> None:
    """Refuses layers that an experiment's networks lack, and useless warm starts."""
    for name, experiment in params.experiments.items():
        networks = {params.backbone.architecture: "backbone.architecture"}
        if experiment.warm_start and params.backbone.weights == "embedded":
            raise UserError(
                f"{path}: experiments.{name}.warm_start: the whole run is on the embedded network. "
                "Set backbone.architecture: vgg19 and its weights, or warm_start: null"
            )
        if experiment.warm_start:
            networks["vgg19-small"] = "its warm start"
        terms = make_terms(experiment.model_dump())
        for (network, reason), term in product(networks.items(), terms):
            try:
                check_layers(needed_layers(term.needs), ARCHITECTURES[network])
            except UserError as error:
                place = f"{path}: experiments.{name}.{term.layers_key}, for {reason} {network}"
                raise UserError(f"{place}: {error}") from error


def main() -> None:
    """Checks params.yaml."""
    print(f"{PARAMS_FILE}: {len(read_params().experiments)} experiments")


if __name__ == "__main__":
    command_line(main)
