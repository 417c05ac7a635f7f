"""Adds an experiment or a grid to params.yaml; its other lines stay as they are."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.axes import is_range
from pipeline.config.grids import update_cells_file
from pipeline.config.params import PARAMS_FILE, read_params, validated
from pipeline.config.schema import Experiment, Params
from pipeline.config.yaml_file import parse
from pipeline.errors import UserError
from pipeline.files import write_text
from pipeline.settings import NAME_RULE


def add_experiment(name: str, params: Params, path: Path = PARAMS_FILE) -> None:
    """Adds the one experiment of ``params`` to a file under a name, and the pictures it lacks.

    The settings that differ from the ``defaults`` of the file are written; the file's network is
    not changed.

    Raises:
        UserError: the file has an experiment of that name, or cannot be read.
    """
    there = read_params(path)
    if name in there.experiments:
        raise UserError(f"{path} has an experiment {name!r}. Choose another name")
    (experiment,) = params.experiments.values()
    known = {image.source: image_name for image_name, image in there.images.items()}
    names: dict[str, str] = {}
    new: dict[str, dict[str, Any]] = {}
    for image in dict.fromkeys(experiment.images.values()):
        source = _near(params.images[image].source, path)
        names[image] = known.get(source) or _free(image, [*there.images, *there.cast, *new])
        if source not in known:
            new[names[image]] = {"source": source}
    text = path.read_text(encoding="utf-8")
    text = _inserted(text, "experiments", {name: _changes(experiment, there, names)})
    text = _inserted(text, "images", new)
    validated(parse(text.encode(), str(path)), f"{path} with the experiment {name!r}")
    write_text(path, text)
    if params.backbone != there.backbone:
        print(f"{path}: the network is that of its section backbone, not the one used here")


def add_grid(name: str, base: str, axes: Sequence[str], path: Path = PARAMS_FILE) -> list[str]:
    """Adds a grid to a file and its cells to the file that DVC reads; returns the cells' names.

    ``axes`` are ``KEY=VALUE,VALUE…``, where the values are YAML; or ``KEY=0..4``, or
    ``KEY={LABEL: VALUE, …}``, as in params.yaml.

    Raises:
        UserError: the file has a grid of that name, cannot be read, or has mistakes with it.
    """
    there = read_params(path)
    if name in there.grids:
        raise UserError(f"{path} has a grid {name!r}. Choose another name")
    over: dict[str, Any] = {}
    for given in axes:
        key, equals, text = given.partition("=")
        if not (key and equals and text) or key in over:
            raise UserError(
                f"--over {given}: write KEY=VALUE,VALUE… with each key once, such as "
                "content_weight=0.1,1,3 or seed=0..4"
            )
        values = parse(f"[{text}]".encode(), f"--over {given}")
        if len(values) > 1 and any(map(is_range, values)):
            raise UserError(f"--over {given}: a range stands alone. List the numbers instead")
        alone = len(values) == 1 and (isinstance(values[0], dict) or is_range(values[0]))
        over[key] = values[0] if alone else values
    text = path.read_text(encoding="utf-8")
    text = _inserted(text, "grids", {name: {"base": base, "over": over}})
    params = validated(parse(text.encode(), str(path)), f"{path} with the grid {name!r}")
    if name not in params.grids:  # but another one: YAML took a part of it for something else
        raise UserError(f"the grid {name!r}: {NAME_RULE}")
    write_text(path, text)
    update_cells_file(params)
    return [cell for cell, grid in params.grid_of.items() if grid == name]


def _changes(experiment: Experiment, there: Params, names: Mapping[str, str]) -> dict[str, Any]:
    """Returns the settings of an experiment that differ from the file's defaults."""
    defaults = there.defaults.model_dump(mode="json")
    settings = experiment.model_dump(mode="json")
    pictures = {key: _renamed(settings[key], names) for key in ("content", "style", "init")}
    return {
        key: value
        for key, value in (pictures | settings | pictures).items()
        if key != "intermediates" and (key not in defaults or value != defaults[key])
    }


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Returns a picture, a style or a mask with the names that the pictures have in the file."""
    if isinstance(value, list):
        return [_renamed(each, names) for each in value]
    if isinstance(value, dict):
        pictures = {"image", "content_mask", "style_mask"}
        return {k: _renamed(each, names) if k in pictures else each for k, each in value.items()}
    return names.get(value, value)


def _near(source: str, path: Path) -> str:
    """Returns a path below the file's folder relative to it, and any other source as it is."""
    folder = path.absolute().parent
    if source.startswith("/") and Path(source).is_relative_to(folder):
        return Path(source).relative_to(folder).as_posix()
    return source


def _free(name: str, taken: list[str]) -> str:
    candidates = [name, *(f"{name}-{number}" for number in range(2, len(taken) + 3))]
    return next(each for each in candidates if each not in taken)


def _inserted(text: str, section: str, entries: Mapping[str, dict[str, Any]]) -> str:
    """Returns the text of a file with entries at the beginning of a section."""
    if not entries:
        return text
    match = re.search(rf"^{section}:[ ]*({{}})?[ ]*(#.*)?\n", text, re.MULTILINE)
    if match is None:
        raise UserError(f"params.yaml has no line `{section}:`. Add it")
    lines = "".join(
        f"  {name}:\n" + "".join(f"    {key}:{_value(key, value)}" for key, value in entry.items())
        for name, entry in entries.items()
    )
    comment = f"  {match[2]}" if match[2] else ""
    return f"{text[: match.start()]}{section}:{comment}\n{lines}{text[match.end() :]}"


def _value(key: str, value: Any) -> str:
    """Returns what stands after the colon of a key, the axes of a grid on a line each."""
    if key != "over":
        return f" {_flow(value)}\n"
    return "".join(["\n", *(f"      {axis}: {_flow(each)}\n" for axis, each in value.items())])


def _flow(value: Any) -> str:
    """Returns a value on one line; JSON is YAML."""
    return json.dumps(value, ensure_ascii=False)
