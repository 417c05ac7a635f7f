"""A YAML file as a mapping, within bounds: what is too large, too deep or no YAML is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError

LARGEST = 2**20
"""Most bytes of a file, and characters and values of it with its aliases written out."""


def read_mapping(path: Path, sections: list[str]) -> dict[str, Any]:
    """Returns the mapping that a file holds; ``sections`` are its keys, for the messages.

    Raises:
        UserError: no such file, larger than ``LARGEST``, not YAML, no mapping, a key twice.
    """
    try:
        content = yaml.load(_text(path), Loader=_Loader)  # noqa: S506
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist. Run in the folder that holds it") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Make it a file") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deep: five levels are enough. Correct it") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).replace('"<unicode string>", ', "")
        raise UserError(f"{path} is not YAML. Correct this: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no mapping. Its sections are {', '.join(sections)}")
    return content


def _text(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise UserError(f"has more than {LARGEST:,} bytes, the most that is read. Shorten it")
    return content.decode("utf-8")


class _Loader(yaml.SafeLoader):
    """YAML as DVC reads it: a key that stands twice is a mistake. Aliases multiply within bounds.

    An alias costs nothing here, but whoever walks through the values meets them all.
    """

    def construct_document(self, node: yaml.Node) -> Any:
        if _written_out(node, {}) > LARGEST:
            raise UserError(
                f"its aliases stand for more than {LARGEST:,} characters and values. Write out "
                "what you need"
            )
        return super().construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, UserError, RecursionError):
            raise
        except Exception as error:  # !!timestamp and its like bring any out of PyYAML
            line, kind = node.start_mark.line + 1, node.tag.rpartition(":")[2]
            raise UserError(f"the {kind} at line {line} cannot be read. Correct it") from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in keys:
                line = node.start_mark.line + 1
                raise UserError(
                    f"the key {key.value!r} stands twice in the mapping at line {line}. Rename one"
                )
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """Returns how many characters and values a node has, once its aliases are written out."""
    if id(node) not in known:
        known[id(node)] = LARGEST  # for an alias to what it stands in
        if isinstance(node, yaml.ScalarNode):
            size = len(node.value)
        elif isinstance(node, yaml.MappingNode):
            size = sum(_written_out(each, known) for pair in node.value for each in pair)
        else:
            size = sum(_written_out(each, known) for each in node.value)
        known[id(node)] = size + 1
    return known[id(node)]
