"""Changes that a command makes to params.yaml; no other line of the file changes.

python -m pipeline.config.presets weights /path/to/vgg19.pth
python -m pipeline.config.presets paper
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from pipeline.config.params import PARAMS_FILE
from pipeline.errors import UserError, command_line
from pipeline.files import write_text

Values = Mapping[tuple[str, str], str | int]
"""{(section, key): value}."""

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
"""The paper's network, size and pictures; those it has and the catalogue has not stay ours."""


def vgg19_from(weights: Path) -> Values:
    """Returns what takes VGG-19 from a file.

    Raises:
        UserError: no such file.
    """
    weights = weights.expanduser().absolute()
    if not weights.is_file():
        raise UserError(f"there is no file of weights at {weights}. Correct the path")
    return {("backbone", "architecture"): "vgg19", ("backbone", "weights"): str(weights)}


def write_values(values: Values, path: Path = PARAMS_FILE) -> None:
    """Writes values into a file of parameters, atomically. YAML anchors stay.

    Raises:
        UserError: a section has no line for a key.
    """
    text = path.read_text(encoding="utf-8")
    for (section, key), value in values.items():
        # DVC may have rewritten the file and broken a long value into deeper lines.
        line = (
            rf"^{section}:\n(?:(?: .*)?\n)*?  {key}:(?P<anchor> &\w+)?(?P<old>.*\n(?: {{4,}}.*\n)*)"
        )
        found = re.search(line, text, re.MULTILINE)
        if not found:
            raise UserError(f"{path} has no line `{key}:` under `{section}:`. Add it")
        new = value if isinstance(value, int) or value.isidentifier() else _quoted(value)
        text = f"{text[: found.start('old')]} {new}\n{text[found.end('old') :]}"
    write_text(path, text)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def main() -> None:
    match sys.argv[1:]:
        case ["paper"]:
            write_values(PAPER)
        case ["weights", path]:
            write_values(vgg19_from(Path(path)))
        case other:
            raise UserError(f"{' '.join(other)!r} is neither `paper` nor `weights PATH`")


if __name__ == "__main__":
    command_line(main)
