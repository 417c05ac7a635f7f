"""Reads params.yaml, completes each experiment from ``defaults``, and reports mistakes."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config.mistakes import choices, contradictions, validation_mistakes
from pipeline.config.schema import Experiment, Params, Settings
from pipeline.config.yaml_file import read_mapping
from pipeline.errors import UserError

PARAMS_FILE = Path("params.yaml")
MISTAKES_SHOWN = 20


def read_params(path: Path = PARAMS_FILE) -> Params:
    """Returns the parameters in a file, each experiment completed from ``defaults``.

    The keys of an experiment replace those of ``defaults``; in ``lbfgs``, single keys do.

    Raises:
        UserError: the file cannot be read or has mistakes; each is listed with its place and rule.
    """
    content = read_mapping(path, list(Params.model_fields))
    try:
        params = Params.model_validate(_completed(content))
    except ValidationError as error:
        mistakes = validation_mistakes(error)
    else:
        mistakes = contradictions(params)
        if not mistakes:
            return params
    shown = mistakes[:MISTAKES_SHOWN]
    if more := len(mistakes) - len(shown):
        shown.append(f"and {more} more")
    raise UserError("\n  ".join([f"{path} has {len(mistakes)} mistake(s):", *shown]))


def find_experiment(params: Params, name: str) -> Experiment:
    """Returns the settings of an experiment, or raises ``UserError`` if none has that name."""
    if name not in params.experiments:
        raise UserError(f"no experiment {name!r}{choices('experiments', name, params.experiments)}")
    return params.experiments[name]


def _completed(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of the file with the keys of ``defaults`` added to each experiment."""
    defaults, experiments = content.get("defaults"), content.get("experiments")
    if not isinstance(defaults, dict) or not isinstance(experiments, dict):
        return content
    known = {key: value for key, value in defaults.items() if key in Settings.model_fields}
    completed = {
        name: _merged(known, changes or {}) if isinstance(changes, dict | None) else changes
        for name, changes in experiments.items()
    }
    return {**content, "experiments": completed}


def _merged(defaults: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = {**defaults, **changes}
    if isinstance(defaults.get("lbfgs"), dict) and isinstance(changes.get("lbfgs"), dict):
        merged["lbfgs"] = {**defaults["lbfgs"], **changes["lbfgs"]}
    return merged
