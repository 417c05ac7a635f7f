"""Turns the arguments of ``transfer`` into the content of a params.yaml with one experiment."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config.edits.tool_presets import preset, preset_contradictions
from pipeline.config.params import validated
from pipeline.config.schema import STARTS, Params
from pipeline.config.yaml_file import parse
from pipeline.errors import UserError
from pipeline.records.tracking import in_sweep

EXPERIMENT = "transfer"
"""The experiment's name, in its own workspace and in the metadata of its picture."""
DEFAULTS: Mapping[str, Any] = {
    "content_weight": 0.3,
    "style_weight": 1.0,
    "style_layers": ["conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"],
    "range_weight": 1000.0,
    "noise_level": 0.1,
    "size": 512,
    "evaluations": 200,
}
"""Settings as in params.yaml, where the schema has none or others; only the size is larger."""
BACKBONE: Mapping[str, Any] = {
    "calibration": [
        "package:skimage/data/astronaut.png",
        "package:skimage/data/chelsea.png",
        "package:skimage/data/coffee.png",
        "package:skimage/data/rocket.jpg",
        "package:skimage/data/ihc.png",
        "package:skimage/data/hubble_deep_field.jpg",
    ]
}
PREVIEW: Mapping[str, Any] = {"size": 256}
FINAL: Mapping[str, Any] = {"size": 1024, "schedule": "coarse_to_fine"}
FIRST_SIZE, LEAST_EVALUATIONS = 512, 20
"""Of a large picture: pixels of the first phase, and evaluations of a phase at least."""
LARGE: Mapping[str, Any] = {"lbfgs": {"history_size": 10}}
VGG19: Mapping[str, Any] = {"architecture": "vgg19", "weights": "imagenet"}


class Request(NamedTuple):
    """What the command line asks for.

    Attributes:
        content, styles: paths, or sources as in params.yaml.
        assignments: ``KEY=VALUE`` of an experiment's settings, or of the network as
            ``backbone.KEY=VALUE``; values are YAML.
        pictures: ``NAME=PATH`` of further pictures, for masks or ``init``.
        quality: ``preview``, ``final``, or empty.
        preset: the name of a tool whose definitions are used, or empty.
        size: long edge in pixels, or None; a large one is reached through smaller ones.
    """

    content: str
    styles: Sequence[str]
    assignments: Sequence[str] = ()
    pictures: Sequence[str] = ()
    quality: str = ""
    preset: str = ""
    size: int | None = None


def to_content(request: Request, vgg19_is_here: bool) -> dict[str, Any]:
    """Returns what a params.yaml would hold for a request.

    ``vgg19_is_here``: whether VGG-19's weights need no download, so that ``final`` takes them. It
    takes those that the request itself names too.

    Raises:
        UserError: an assignment is none, or a name is given twice.
    """
    catalogue: dict[str, dict[str, str]] = {}
    content = _add_picture(catalogue, request.content)
    styles = [_add_picture(catalogue, style) for style in request.styles]
    for given in request.pictures:
        name, source = _split(given, "--picture", "NAME=PATH")
        if name in catalogue:
            raise UserError(f"--picture {given}: {name!r} is taken. Give it another name")
        catalogue[name] = {"source": _absolute(source)}
    own: dict[str, Any] = {"content": content, "style": styles}
    own_backbone: dict[str, Any] = {}
    for given in request.assignments:
        key, text = _split(given, "--set", "KEY=VALUE")
        value = parse(text.encode(), f"--set {given}")
        section = own_backbone if key.startswith("backbone.") else own
        _assign(section, key.removeprefix("backbone."), value)
    if isinstance(own_backbone.get("weights"), str):
        own_backbone["weights"] = _absolute(own_backbone["weights"])
    settings, backbone = dict(DEFAULTS), dict(BACKBONE)
    if request.preset:
        sections = _preset(request, own, own_backbone)
        settings |= sections["defaults"]
        backbone |= sections["backbone"]
    if request.quality == "preview":
        settings |= PREVIEW
    elif request.quality == "final":
        settings |= FINAL
        here = "imagenet" if vgg19_is_here else "embedded"
        if own_backbone.get("weights", here) != "embedded":
            settings["warm_start"] = "embedded"
            backbone |= VGG19
    if request.size is not None:
        settings |= _of_size(request.size)
    return {
        "images": catalogue,
        "backbone": backbone | own_backbone,
        "defaults": settings,
        "experiments": {EXPERIMENT: own},
        "figures": {},
        "cast": {},
        "grids": {},
        "tracking": {"mode": "auto" if in_sweep() else "disabled"},
    }


def _of_size(size: int) -> dict[str, Any]:
    """Returns the settings of a picture whose long edge has ``size`` pixels.

    A large one begins at ``FIRST_SIZE`` and doubles, with half of the evaluations each time: the
    small sizes place the shapes and the strokes, the large ones add what is finer.
    """
    if size < 2 * FIRST_SIZE:
        return {"size": size}

    first: int = DEFAULTS["evaluations"]

    def evaluations(edge: int) -> int:
        return max(LEAST_EVALUATIONS, first * FIRST_SIZE // edge)

    edges: list[int] = []
    while (edge := FIRST_SIZE << len(edges)) < size * 3 // 4:
        edges.append(edge)
    phases = [{"size": each, "evaluations": evaluations(each)} for each in edges]
    return {**LARGE, "size": size, "sizes": phases, "evaluations": evaluations(size)}


def _preset(
    request: Request, own: dict[str, Any], own_backbone: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Returns the values of a preset by section; raises ``UserError`` for what contradicts it."""
    if request.quality:
        raise UserError(
            f"--preset {request.preset} has its own sizes and network, so that --preview and "
            "--quality do not go with it. Leave one out"
        )
    if request.size is not None:
        raise UserError(
            f"--preset {request.preset} has sizes of its own, which --size {request.size} would "
            f"replace. Scale them with --set size={request.size}"
        )
    size = own.get("size")
    sections = preset(request.preset, size if isinstance(size, int) else None)
    contradictions = preset_contradictions(
        request.preset,
        {"defaults": {k: v for k, v in own.items() if k != "size"}, "backbone": own_backbone},
    )
    if contradictions:
        raise UserError("\n".join(contradictions))
    return sections


def to_params(request: Request, vgg19_is_here: bool) -> Params:
    """Returns the checked parameters of a request; raises ``UserError`` with all its mistakes."""
    return validated(to_content(request, vgg19_is_here), "the command")


def _add_picture(catalogue: dict[str, dict[str, str]], source: str) -> str:
    """Adds a picture under a name made of its file's, and returns the name."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(source.rstrip("/")).stem).strip("-_")[:48]
    entry, name, number = {"source": _absolute(source)}, stem or "picture", 2
    name = f"{name}-picture" if name in STARTS else name
    first = name
    while name in catalogue and catalogue[name] != entry:
        name, number = f"{first}-{number}", number + 1
    catalogue[name] = entry
    return name


def _absolute(source: str) -> str:
    """Returns a source that means the same in another folder."""
    if "://" in source or source.startswith("package:") or source in ("embedded", "imagenet"):
        return source
    return str(Path(source).expanduser().absolute())


def _split(given: str, option: str, form: str) -> tuple[str, str]:
    key, equals, value = given.partition("=")
    if not (key and equals):
        raise UserError(f"{option} {given}: write {form}, without spaces around =")
    return key, value


def _assign(section: dict[str, Any], key: str, value: Any) -> None:
    """Sets a key, such as ``size``, or ``lbfgs.history_size`` in a section of the section."""
    *parents, last = key.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise UserError(f"--set {key}: {parent} has a value already. Set it once")
    section[last] = value


def default_out(request: Request) -> Path:
    """Returns the file for a result in the current folder: ``CONTENT-STYLE.png``."""
    return Path("-".join(Path(each).stem for each in (request.content, *request.styles)) + ".png")
