"""Presets: groups of values that ``python -m pipeline preset`` writes into params.yaml."""

import json
import os
import re
from pathlib import Path

from pipeline.config.params import PARAMS_FILE
from pipeline.config.yaml_file import REFUSED_IN_TEXT
from pipeline.errors import UserError
from pipeline.files import write_text

Values = dict[tuple[str, str], str | int]  # {(section, key): value}

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


def write_values(values: Values, path: Path = PARAMS_FILE) -> None:
    """Replaces values in a file of parameters, atomically; all other text and YAML anchors stay."""
    text = path.read_text(encoding="utf-8")
    for (section, key), value in values.items():
        place = rf"^{section}:\n(?:(?: .*)?\n)*?  {key}:(?: &\w+)?"
        # DVC may have rewritten the file and broken a long value into deeper lines.
        match = re.search(rf"{place}(?P<old>.*\n(?: {{4,}}.*\n)*)", text, re.MULTILINE)
        if not match:
            raise UserError(f"{path} has no line `{key}:` under `{section}:`. Add it")
        plain = isinstance(value, int) or value.isidentifier()
        new = value if plain else json.dumps(value, ensure_ascii=False)
        text = f"{text[: match.start('old')]} {new}\n{text[match.end('old') :]}"
    write_text(path, text)
