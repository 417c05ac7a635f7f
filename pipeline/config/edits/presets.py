"""Presets: groups of values that ``python -m pipeline preset`` writes into params.yaml."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode

from pipeline.config.params import PARAMS_FILE
from pipeline.config.yaml_file import REFUSED_IN_TEXT
from pipeline.errors import UserError
from pipeline.files import write_text

Values = Mapping[tuple[str, str], Any]  # {(section, key): value}

NOTHING = "tag:yaml.org,2002:null"

# The network, the size and the pictures of the paper, as far as the catalogue has them.
PAPER: Values = {
    ("backbone", "architecture"): "vgg19",
    ("backbone", "weights"): "imagenet",
    ("defaults", "size"): 512,
    ("cast", "photograph"): "neckarfront",
    ("cast", "painting"): "starry_night",
    ("cast", "abstract"): "composition_vii",
    ("cast", "style_b"): "shipwreck",
    ("cast", "style_c"): "starry_night",
    ("cast", "style_d"): "the_scream",
    ("cast", "style_f"): "composition_vii",
}


def vgg19_from(weights: Path) -> Values:
    """Returns the values that make VGG-19, with the weights in a file, the network."""
    weights = Path(os.path.expanduser(weights)).absolute()  # noqa: PTH111 - it takes any ~name
    if REFUSED_IN_TEXT.search(str(weights)):
        raise UserError(
            f"{str(weights)!r} has what params.yaml cannot hold: ${{, or a control character. "
            "Rename the file"
        )
    if not weights.is_file():
        raise UserError(f"there is no file of weights at {weights}. Correct the path")
    return {("backbone", "architecture"): "vgg19", ("backbone", "weights"): str(weights)}


def values_of(sections: Mapping[str, Mapping[str, Any]]) -> Values:
    """Returns as {(section, key): value} what ``tool_presets.preset`` has by section."""
    return {(name, key): value for name, keys in sections.items() for key, value in keys.items()}


def write_values(values: Values, path: Path = PARAMS_FILE) -> None:
    """Replaces values in a file of parameters, atomically; all other text and YAML anchors stay.

    A list or a mapping is written in one line. The keys of a mapping that has a line for each of
    them are replaced one by one, so that the comments between them stay.

    Raises:
        UserError: the file has no line for a value, or is not YAML; nothing is written then.
    """
    text = path.read_text(encoding="utf-8")
    try:
        root = YAML(typ="safe", pure=True).compose(text)
    except YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}. Correct it") from error
    edits: list[tuple[int, int, str]] = []
    for (section, key), value in values.items():
        _, keys = _entries(root).get(section, (None, None))
        if key not in _entries(keys):
            raise UserError(f"{path} has no line `{key}:` under `{section}:`. Add it")
        edits += _edits(text, *_entries(keys)[key], value)
    for start, end, new in sorted(edits, reverse=True):
        text = f"{text[:start]} {new}{text[end:]}"
    write_text(path, text)


def _entries(node: Node | None) -> dict[str, tuple[Node, Node]]:
    """Returns {key: nodes of the key and of its value} of a mapping; nothing of another node."""
    pairs = node.value if isinstance(node, MappingNode) else []
    return {key.value: (key, value) for key, value in pairs if isinstance(key, ScalarNode)}


def _edits(text: str, key: Node, old: Node, new: Any) -> Iterator[tuple[int, int, str]]:
    """Yields what to replace: start and end in the text, and the new text after a space."""
    inner = _entries(old)
    in_lines = isinstance(old, MappingNode) and not old.flow_style
    if in_lines and isinstance(new, Mapping) and set(new) <= set(inner):
        for name, value in new.items():
            yield from _edits(text, *inner[name], value)
        return
    start = text.index(":", key.end_mark.index) + 1
    if old.tag == NOTHING and not old.value:
        end = start  # the node of a value that is not written is at the next key
    elif old.start_mark.index < start:  # an alias, whose node is at its anchor
        end = start + len(text[start:].partition("\n")[0].partition(" #")[0].rstrip())
    else:
        end = max(start, _end(text, old))
        if old.anchor:
            start = text.index(f"&{old.anchor}", start) + 1 + len(old.anchor)
    yield start, end, _written(new)


def _end(text: str, node: Node) -> int:
    """Returns where a value ends; a block of lines ends after its last value."""
    if isinstance(node, CollectionNode) and node.value and not node.flow_style:
        last = node.value[-1]
        return _end(text, last[1] if isinstance(node, MappingNode) else last)
    start, end = node.start_mark.index, node.end_mark.index
    return int(start) + len(text[start:end].rstrip())


def _written(value: Any) -> str:
    """Returns a value as params.yaml has it, in one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_written(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, float):
        digits, mark, exponent = repr(value).partition("e")  # YAML 1.1 wants the dot in 1.0e-05
        return f"{digits}{'' if '.' in digits or not mark else '.0'}{mark}{exponent}"
    if isinstance(value, str) and value.isidentifier() and value not in ("null", "true", "false"):
        return value
    return json.dumps(value, ensure_ascii=False)
