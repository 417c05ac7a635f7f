"""Reads a YAML file whose size, depth and keys are checked."""

from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError

# The most bytes of a file, and the most characters and values after its aliases are expanded.
LARGEST = 2**20


def read_mapping(path: Path, sections: list[str]) -> dict[str, Any]:
    """Returns the mapping in a file, or raises ``UserError`` if it is none, or has a key twice.

    ``sections`` are its possible keys, for the messages.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise UserError(f"has more than {LARGEST:,} bytes, the most that is read. Shorten it")
        content = yaml.load(text.decode("utf-8"), Loader=_Loader)  # noqa: S506
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist. Run in the folder that holds it") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Make it a file") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deep: five levels are enough. Correct it") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        for mark in ("problem_mark", "context_mark"):
            if place := getattr(error, mark, None):
                place.buffer = None  # or a piece of the line is shown, perhaps of a password
        reason = str(error).replace('"<unicode string>", ', "")
        raise UserError(f"{path} is not YAML. Correct this: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no mapping. Its sections are {', '.join(sections)}")
    return content


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, without repeated keys, as DVC reads YAML, and with limits to aliases.

    A few aliases of aliases can stand for billions of values.
    """

    def construct_document(self, node: yaml.Node) -> Any:
        size, waiting = 0, [node]
        while waiting:
            each = waiting.pop()
            if isinstance(each, yaml.ScalarNode):
                size += len(each.value)
            else:
                pairs = isinstance(each, yaml.MappingNode)
                waiting += chain.from_iterable(each.value) if pairs else each.value
            size += 1
            if size + len(waiting) > LARGEST:
                raise UserError(
                    f"its aliases stand for more than {LARGEST:,} characters and values. "
                    "Write out what you need"
                )
        return super().construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, UserError, RecursionError):
            raise
        except Exception as error:  # such as a ValueError for a wrong !!timestamp
            line, kind = node.start_mark.line + 1, node.tag.rpartition(":")[2]
            raise UserError(f"the {kind} at line {line} cannot be read. Correct it") from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key in keys:
                line = node.start_mark.line + 1
                raise UserError(
                    f"the key {key!r} stands twice in the mapping at line {line}. Rename one"
                )
            keys.add(key)
        return super().construct_mapping(node, deep)
