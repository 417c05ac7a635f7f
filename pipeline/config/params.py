"""Reads params.yaml, completes each experiment from ``defaults``, and reports mistakes."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config.grids import expanded, merged
from pipeline.config.mistakes import choices, contradictions, sentences, validation_mistakes
from pipeline.config.schema import Experiment, Params, Settings
from pipeline.config.yaml_file import read_mapping
from pipeline.errors import UserError

PARAMS_FILE = Path("params.yaml")
MISTAKES_SHOWN = 20
PICTURE_KEYS = ("image", "content_mask", "style_mask")
"""The keys of a style, or of its masks, that name a picture."""


def read_params(path: Path = PARAMS_FILE) -> Params:
    """Returns the parameters in a file, each experiment completed from ``defaults``.

    The cells of ``grids`` are experiments too. The keys of an experiment replace those of
    ``defaults``. In a section, such as ``lbfgs`` and ``early_stop``, single keys do; a mapping of
    layers is a value and is replaced as a whole. A picture that is a role of ``cast`` becomes the
    picture that plays it.

    Raises:
        UserError: the file cannot be read or has mistakes; each is listed with its place and rule.
    """
    return validated(read_mapping(path, list(Params.model_fields)), str(path))


def validated(content: dict[str, Any], origin: str) -> Params:
    """Returns the parameters in a mapping like that of params.yaml, as ``read_params`` does.

    ``origin`` says in the message of a ``UserError`` where they come from.
    """
    content, mistakes = expanded(content)
    completed = _completed(content)
    try:
        params = Params.model_validate(completed)
    except ValidationError as error:
        mistakes += validation_mistakes(error, completed)
    else:
        mistakes = mistakes or contradictions(params)
        if not mistakes:
            return params
    listed = sentences(mistakes, content.get("grids"))
    shown = [_shortened(sentence) for sentence in listed[:MISTAKES_SHOWN]]
    if more := len(listed) - len(shown):
        shown.append(f"and {more} more")
    raise UserError("\n  ".join([f"{origin} has {len(listed)} mistake(s):", *shown]))


def find_experiment(params: Params, name: str) -> Experiment:
    """Returns the settings of an experiment, or raises ``UserError`` if none has that name."""
    if name not in params.experiments:
        raise UserError(f"no experiment {name!r}{choices('experiments', name, params.experiments)}")
    return params.experiments[name]


def _shortened(mistake: str) -> str:
    """Returns a message with its middle left out if a value in it has hundreds of characters."""
    return mistake if len(mistake) <= 2000 else f"{mistake[:1000]} … {mistake[-500:]}"


def _completed(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of the file, each experiment with all its settings and its pictures."""
    defaults, experiments = content.get("defaults"), content.get("experiments")
    if not isinstance(defaults, dict) or not isinstance(experiments, dict):
        return content
    known = {key: value for key, value in defaults.items() if key in Settings.model_fields}
    completed = {
        name: merged(known, _with_pictures(changes or {}, content.get("cast")))
        if isinstance(changes, dict | None)
        else changes
        for name, changes in experiments.items()
    }
    return {**content, "experiments": completed}


def _with_pictures(changes: dict[str, Any], cast: Any) -> dict[str, Any]:
    """Returns an experiment's own keys, with the picture in the place of a role of the cast."""
    pictures = cast if isinstance(cast, dict) else {}

    def played(value: Any) -> Any:
        if isinstance(value, list):
            return [played(each) for each in value]
        if isinstance(value, dict):
            named = {key: played(value[key]) for key in PICTURE_KEYS if key in value}
            return {**value, **named}
        return pictures.get(value, value) if isinstance(value, str) else value

    keys = ("content", "style", "init")
    return changes | {key: played(changes[key]) for key in keys if key in changes}
