"""Reads params.yaml: experiments completed from the defaults, mistakes as sentences.

Every stage reads the whole file through ``read_params``. DVC itself reads it before any stage
runs, and says some mistakes in its own words; ``python -m pipeline.params`` is there first.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.errors import UserError, command_line, nearest
from pipeline.files import write_text
from pipeline.layers import ARCHITECTURES, check_layers
from pipeline.schema import (
    Backbone,
    CataloguedImage,
    Distillation,
    Experiment,
    Lbfgs,
    Params,
    Section,
    Settings,
    Tracking,
)

PARAMS_FILE = Path("params.yaml")

_SECTION_MODELS: dict[str, type[Section]] = {
    "images": CataloguedImage,
    "backbone": Backbone,
    "defaults": Settings,
    "lbfgs": Lbfgs,
    "experiments": Experiment,
    "distillation": Distillation,
    "tracking": Tracking,
}


def read_params(path: Path = PARAMS_FILE) -> Params:
    """Returns the parameters in a file, each experiment completed from ``defaults``.

    An experiment's keys replace those of ``defaults``; the keys of its ``lbfgs`` replace one by
    one.

    Raises:
        UserError: no such file, not YAML, or mistakes, each named with its place and the rule.
    """
    content = _read_yaml(path)
    try:
        params = Params.model_validate(_completed(content))
    except ValidationError as error:
        mistakes = _mistakes(error)
        raise UserError(
            f"{path} has {len(mistakes)} mistake(s):\n  " + "\n  ".join(mistakes)
        ) from None
    _check_image_names(path, params)
    _check_layers(path, params)
    return params


class _Loader(yaml.SafeLoader):
    """YAML as DVC reads it: a key that stands twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise UserError(f"the key {key!r} stands twice in the mapping at line {line}")
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist. Run in the folder that holds it") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds no mapping. Its sections are {', '.join(Params.model_fields)}"
        )
    return content


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
    found = [(tuple(map(str, item["loc"])), _sentence(dict(item))) for item in error.errors()]
    # A mistake in defaults comes back in every experiment that leaves the key to them.
    of_defaults = {(place[1:], sentence) for place, sentence in found if place[0] == "defaults"}
    return [
        f"{'.'.join(place)}: {sentence}"
        for place, sentence in found
        if not (place[0] == "experiments" and (place[2:], sentence) in of_defaults)
    ]


def _sentence(item: dict[str, Any]) -> str:
    if item["type"] == "extra_forbidden":
        *parents, key = map(str, item["loc"])
        section = "lbfgs" if parents[-1:] == ["lbfgs"] else "".join(parents[:1])
        model = _SECTION_MODELS.get(section, Params)
        known = list(model.model_fields)
        return f"unknown key{nearest(key, known)} The keys are {', '.join(known)}"
    if item["type"] == "missing":
        return "is missing. Add it"
    message = str(item["msg"]).removeprefix("Value error, ")
    return message if isinstance(item["input"], dict) else f"{item['input']!r}: {message}"


def _check_image_names(path: Path, params: Params) -> None:
    known = list(params.images)
    for name, experiment in params.experiments.items():
        for role, image in (("content", experiment.content), ("style", experiment.style)):
            if image not in known:
                raise UserError(
                    f"{path}: experiments.{name}.{role}: no image {image!r} in the catalogue"
                    f"{nearest(image, known)} The images are {', '.join(known)}"
                )


def _check_layers(path: Path, params: Params) -> None:
    """Refuses layers that an experiment's networks lack, and a warm start that is none."""
    for name, experiment in params.experiments.items():
        networks = {params.backbone.architecture: "backbone.architecture"}
        if experiment.warm_start and params.backbone.weights == "embedded":
            raise UserError(
                f"{path}: experiments.{name}.warm_start: the whole run is on the embedded network. "
                "Set backbone.architecture: vgg19 and its weights, or warm_start: null"
            )
        if experiment.warm_start:
            networks["vgg19-small"] = "its warm start"
        for network, reason in networks.items():
            for key, layers in (
                ("content_layers", experiment.content_layers),
                ("style_layers", experiment.style_layers),
            ):
                try:
                    check_layers(layers, ARCHITECTURES[network])
                except UserError as error:
                    place = f"{path}: experiments.{name}.{key}, for {reason} {network}"
                    raise UserError(f"{place}: {error}") from error


def write_weights(weights: Path, path: Path = PARAMS_FILE) -> None:
    """Writes a path of VGG-19's weights at ``backbone.weights``, and the architecture beside it.

    Nothing else of the file changes.

    Raises:
        UserError: no such file of weights, or no such lines in the parameters.
    """
    if not weights.is_file():
        raise UserError(f"there is no file of weights at {weights}. Correct the path")
    text = path.read_text(encoding="utf-8")
    value = json.dumps(str(weights), ensure_ascii=False)
    for key, new in (("architecture", "vgg19"), ("weights", value)):
        # DVC may have rewritten the file and broken a long value into deeper lines.
        line = rf"^backbone:\n(?:(?: .*)?\n)*?  {key}:(?P<old>.*\n(?: {{4,}}.*\n)*)"
        found = re.search(line, text, re.MULTILINE)
        if not found:
            raise UserError(f"{path} has no line `{key}:` under `backbone:`. Add it")
        text = f"{text[: found.start('old')]} {new}\n{text[found.end('old') :]}"
    write_text(path, text)


def main() -> None:
    """Checks params.yaml; given a path, first writes it there as that of VGG-19's weights."""
    if len(sys.argv) > 1:
        write_weights(Path(sys.argv[1]))
    print(f"{PARAMS_FILE}: {len(read_params().experiments)} experiments")


if __name__ == "__main__":
    command_line(main)
