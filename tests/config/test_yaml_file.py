"""The file of parameters is read as DVC reads it, and what DVC's writer makes of it is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import ParseError, parse_yaml

from pipeline.config.yaml_file import read_mapping
from pipeline.errors import UserError


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str], Any]:
    """Returns a function that writes a file and returns the value of its key ``a``."""

    def read(text: str) -> Any:
        path = tmp_path / "params.yaml"
        path.write_bytes(text.encode())
        return read_mapping(path, ["a"])["a"]

    return read


@pytest.mark.parametrize(
    "value",
    [
        *("0777", "0064", "-0777", "08", "00", "0_7", "0o17", "1_0e", "0x_", "!!int '0777'"),
        *("2001-01-01", "2001-01-01 10:00:00", "=", "<<", "._", "!!set {b}", "!!omap [b: 1]"),
        *("!!binary aGk=", "!foo 12", "!!python/name:os.system", "!!timestamp 2001-01-01"),
        *("{b: https://h/p.jpg}", "[package:skimage/data/coffee.png]", "{b:c}", "b\tc", "1\t# c"),
        *("b\x85c", "1 # b\x85c: 2", "1 # b\u2028c: 2", "'b\u2029c'", '"\\x85"', '"\\u2028"'),
        *('"\\ud800"', '"\\0"', '"\\x07"', '"\\r"', '"\\uffff"', "'${b}'", "'b ${oops'"),
        *("9" * 5000, "-" + "9" * 5000, "0x" + "f" * 5000, "0b" + "1" * 5000),
        *("[" * 100_000, "{b: " * 100_000, "[" * 21 + "]" * 21),
    ],
    ids=lambda value: ascii(value[:20]),
)
@pytest.mark.parametrize("place", ["a: {}\n", "a:\n- {}\n", "{}: 1\na: 1\n"])
def test_what_is_not_the_same_to_all_readers_and_writers_is_refused(
    value: str, place: str, read: Any
) -> None:
    if value == "1_0e" or (value == "<<" and place.startswith("{")):
        return  # plain text, and a merge
    with pytest.raises(UserError, match=r"params\.yaml") as raised:
        read(place.format(value))
    assert "line" in str(raised.value) or "nested" in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("text", ["%YAML 1.1\n---\na: 1\n", "%TAG ! tag:x,2000:\n---\na: 1\n"])
def test_directives_which_the_writer_drops_are_refused(text: str, read: Any) -> None:
    with pytest.raises(UserError, match="line 1 has a directive"):
        read(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("0", 0), ("+1", 1), ("-12", -12), ("1_000", 1000), ("0x1F", 31), ("0b11", 3)),
        *((".5", 0.5), ("1.", 1.0), ("-.5", -0.5), ("1e3", 1000.0), ("1e-3", 0.001)),
        *(("~", None), ("Null", None), ("", None), ("True", True), ("FALSE", False)),
        *(("on", "on"), ("off", "off"), ("yes", "yes"), ("No", "No"), ("y", "y"), ("N", "N")),
        *(("1:30", "1:30"), ("190:20:30", "190:20:30"), ("1:30.5", "1:30.5"), ("NaN", "NaN")),
        *(("'on'", "on"), ("'0777'", "0777"), ("'1e5'", "1e5"), ("'null'", "null")),
        *(("'2001-01-01'", "2001-01-01"), ("'='", "="), ("'<<'", "<<"), ("''", "")),
        *(("[b, 1]", ["b", 1]), ("{b: [1]}", {"b": [1]}), ("!!str 12", "12"), ("b#c", "b#c")),
        *((">\n  b\n  c\n", "b c\n"), ("|\n  b\n  c\n", "b\nc\n"), ("1 # b\tc", 1)),
    ],
)
def test_every_other_value_is_that_of_dvc_before_and_after_it_writes(
    text: str, value: Any, tmp_path: Path, read: Any
) -> None:
    document = f"a: {text}\nother: 1\n"
    assert read(document) == value == parse_yaml(document, "")["a"]
    path = tmp_path / "params.yaml"
    apply_overrides(path, ["other=2"])
    assert read(path.read_text("utf-8")) == value
    # YAML 1.1 reads it alike, or takes text for something else.
    older = yaml.safe_load(document)["a"]
    assert older == value or isinstance(value, str) or float(older) == value


@pytest.mark.parametrize("mark", ["\ufeff", "---\n", "# c\ttab\n", "\r\n", "b: 1\r"])
def test_legal_beginnings_are_read(mark: str, read: Any) -> None:
    assert read(f"{mark}a: 1\n") == 1


@pytest.mark.parametrize("text", ["a: 1\na: 2\n", "a: {b: 1, 'b': 2}\n", "1: 1\n1.0: 2\na: 3\n"])
def test_repeated_key_is_refused_as_by_dvc(text: str, read: Any) -> None:
    with pytest.raises(ParseError):
        parse_yaml(text, "")
    with pytest.raises(UserError, match=r"twice|duplicate"):
        read(text)


@pytest.mark.parametrize(
    "text",
    [
        "{b: https://h/p.jpg}",
        '{b: "https://h/p.jpg"}',
        "{b: {c: '1:30'}}",
        "{b: ['1:30']}",
        "{'b:c': 1}",
        "[{b: '1:30'}]",
        "[1:30]",
    ],
)
def test_text_with_a_colon_in_braces_which_dvc_writes_without_quotes_is_refused(
    text: str, read: Any
) -> None:
    with pytest.raises(UserError, match=r"line 1.* on a line of its own"):
        read(f"a: {text}\n")


def test_text_with_a_colon_is_read_elsewhere(read: Any) -> None:
    assert read("a:\n  b: https://h/p.jpg\n") == {"b": "https://h/p.jpg"}
    assert read("a: ['1:30']\n") == ["1:30"]
