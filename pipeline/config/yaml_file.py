"""Reads a YAML file with DVC's parser, and refuses values that other YAML parsers read otherwise.

DVC reads YAML 1.2, by ruamel.yaml. Text that YAML 1.1 takes for another value, such as on and 1:30,
is text here, so that nothing changes where DVC writes it without its quotes.
"""

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    CollectionEndEvent,
    CollectionStartEvent,
    MappingStartEvent,
    ScalarEvent,
)
from ruamel.yaml.nodes import MappingNode, ScalarNode

from pipeline.errors import UserError, shown

# The most bytes of a file, and the most characters and values after its aliases are expanded.
LARGEST = 2**20
# More levels than any setting has. DVC's reader crashes at some ten thousand.
DEEPEST = 20
KINDS = {"null", "bool", "int", "float", "str", "seq", "map"}
# Whole numbers that mean the same in every version of YAML; 0777 is 777 or 511.
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+|0b[01]+)")
LONGEST_NUMBER = 100
# Characters that no page can show, and ends of lines in some readers alone.
CONTROL = r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\ufffe\uffff]"
# DVC's writer cannot read tabs outside of comments, and keeps no directives (%YAML 1.1).
REFUSED_IN_FILE = re.compile(rf"(?:^[^#\n]*?\t|{CONTROL}|^%)", re.MULTILINE)
REFUSED_IN_TEXT = re.compile(rf"{CONTROL}|\r|\$\{{")


def read_mapping(path: Path, sections: list[str]) -> dict[str, Any]:
    """Returns the mapping in a file, or raises ``UserError`` if it is none, or has a key twice.

    ``sections`` are its possible keys, for the messages.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise UserError(
                f"{path}: has more than {LARGEST:,} bytes, the most that is read. Shorten it"
            )
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist. Run in the folder that holds it") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Make it a file") from error
    content = parse(data, str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no mapping. Its sections are {', '.join(sections)}")
    return content


def parse(data: bytes, origin: str) -> Any:
    """Returns the value of a YAML document; ``origin`` says in a ``UserError`` where it is from."""
    try:
        return _parsed(data.decode("utf-8"))
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    except RecursionError as error:
        raise UserError(
            f"{origin} is nested too deep: five levels are enough. Correct it"
        ) from error
    except (YAMLError, UnicodeDecodeError) as error:
        reason = str(error)
        if isinstance(error, MarkedYAMLError) and error.problem_mark:
            reason = f"line {error.problem_mark.line + 1}: {error.problem}"
        if "unexpected ':'" in reason:
            reason += ". Write text with a colon on a line of its own, outside of [ ] and { }"
        raise UserError(f"{origin} is not YAML. Correct this: {reason}") from error


def _parsed(text: str) -> Any:
    if match := REFUSED_IN_FILE.search(text):
        line, last = text.count("\n", 0, match.end() - 1) + 1, match[0][-1]
        what = "a directive" if last == "%" else "a tab" if last == "\t" else f"U+{ord(last):04X}"
        raise UserError(f"line {line} has {what}, which DVC cannot keep. Remove it, or use spaces")
    reader = YAML(typ="safe")  # as DVC has it
    reader.Constructor = _Constructor
    in_braces: list[bool] = []  # for each level
    for event in reader.parse(text):
        if isinstance(event, CollectionStartEvent):
            braces = isinstance(event, MappingStartEvent) and bool(event.flow_style)
            in_braces.append(braces or in_braces[-1:] == [True])
        elif isinstance(event, CollectionEndEvent):
            in_braces.pop()
        elif isinstance(event, ScalarEvent) and in_braces[-1:] == [True] and ":" in event.value:
            raise UserError(
                f"{shown(event.value)} at line {event.start_mark.line + 1} has a colon inside "
                "{ }, where DVC writes it without quotes and then cannot read it. Write each key "
                "on a line of its own, without { }"
            )
        if len(in_braces) > DEEPEST:
            raise RecursionError
    return reader.load(text)


class _Constructor(SafeConstructor):
    """ruamel.yaml's safe constructor, for values that all readers of YAML take for the same."""

    def construct_document(self, node: Any) -> Any:
        size, waiting = 0, [node]
        while waiting:
            each = waiting.pop()
            size += 1
            _check_kind(each)
            if isinstance(each, ScalarNode):
                size += len(each.value)
                _check_scalar(each)
            elif isinstance(each, MappingNode):
                _check_keys(each)
                waiting += [part for pair in each.value for part in pair if _kind(part) != "merge"]
            else:
                waiting += each.value
            # A few aliases of aliases can stand for billions of values.
            if size + len(waiting) > LARGEST:
                raise UserError(
                    f"its aliases stand for more than {LARGEST:,} characters and values. "
                    "Write out what you need"
                )
        return super().construct_document(node)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (YAMLError, UserError):
            raise
        except Exception as error:  # such as a ValueError for the number ._
            raise UserError(f"{_place(node)} is no {_kind(node)}. Correct it") from error


def _check_kind(node: Any) -> None:
    if _kind(node) not in KINDS:
        raise UserError(
            f"{_place(node)} is a {_kind(node)} to YAML, which no setting is. Put text in quotes, "
            "and remove a tag that begins with !"
        )


def _check_scalar(node: ScalarNode) -> None:
    if match := REFUSED_IN_TEXT.search(node.value):
        what = "${" if match[0] == "${" else f"the character U+{ord(match[0]):04X}"
        raise UserError(
            f"{_place(node)} has {what}, which DVC and the report cannot keep. Remove it"
        )
    kind = _kind(node)
    if kind in ("int", "float") and len(node.value) > LONGEST_NUMBER:
        raise UserError(f"{_place(node)} has {len(node.value):,} digits. Write a shorter number")
    if kind == "int" and not INTEGER.fullmatch(node.value):
        raise UserError(
            f"{_place(node)} is a different number, or text, to different readers of YAML. Write "
            "a decimal number without zeros before it, or text in quotes that begins with a letter"
        )


def _check_keys(node: MappingNode) -> None:
    keys: set[str] = set()
    for key in (key.value for key, _ in node.value if isinstance(key, ScalarNode)):
        if key in keys:
            line = node.start_mark.line + 1
            raise UserError(
                f"the key {key!r} stands twice in the mapping at line {line}. Rename one"
            )
        keys.add(key)


def _kind(node: Any) -> str:
    return str(node.tag).removeprefix("tag:yaml.org,2002:")


def _place(node: Any) -> str:
    what = shown(node.value) if isinstance(node, ScalarNode) else "what stands"
    return f"{what} at line {node.start_mark.line + 1}"
