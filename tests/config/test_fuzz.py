"""Random input: whatever params.yaml, a picture or weights hold, they are read or refused.

FUZZ_EXAMPLES params and as many pictures are tried, 2000 unless that variable of the environment
says otherwise, and always the same ones.
"""

from __future__ import annotations

import copy
import os
import resource
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from conftest import REPOSITORY
from hostile import clear_palette, encoded, first_layer, of_mode, pickled, sixteen_bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from safetensors.torch import save as safetensors

from pipeline.config.params import read_params
from pipeline.errors import Notice, UserError
from pipeline.imaging.picture_files import read_picture
from pipeline.losses.term import LossConvention
from pipeline.networks.layers import ARCHITECTURES
from pipeline.networks.weight_files import load_small, load_weights

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "2000"))
SLOWEST = timedelta(seconds=10)
MOST_MEMORY = 2 * 2**30
"""Bytes of the whole process."""


def examples(share: float = 1.0) -> settings:
    return settings(
        max_examples=max(1, round(EXAMPLES * share)),
        deadline=SLOWEST,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(autouse=True)
def _bounded_memory() -> Iterator[None]:
    before = peak_memory()
    yield
    assert peak_memory() <= max(before, MOST_MEMORY)


def peak_memory() -> int:
    """Returns the most bytes that this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# Parameters.

SHIPPED: dict[str, Any] = yaml.safe_load((REPOSITORY / "params.yaml").read_text("utf-8"))


CONTROLS: dict[str, Any] = {
    "content": "photograph",
    "style": [
        {"image": "glass", "weight": 2.0, "layers": ["conv1_1"], "style_mask": "dots"},
        {"image": "painting", "content_mask": {"image": "night", "label": "#ff0000"}},
    ],
    "init": "hatching",
    "sizes": [{"size": 64, "evaluations": 3}],
}


def shortened() -> dict[str, Any]:
    """Returns the shipped parameters with two experiments, one figure and their pictures."""
    params = copy.deepcopy(SHIPPED)
    params["experiments"] = dict(list(params["experiments"].items())[:1])
    params["experiments"]["controls"] = copy.deepcopy(CONTROLS)
    rows = [list(params["experiments"])]
    params["figures"] = {"one": {"title": "One", "rows": rows, "row_titles": ["both"]}}
    axes = {"style": ["glass", "dots"], "seed": "0..1", "lbfgs.lr": {"low": 0.5}}
    params["grids"] = {"two": {"base": "controls", "over": axes, "title": "Two"}}
    used = sorted(set(params["cast"].values()))
    params["images"] = {name: params["images"][name] for name in used}
    return params


PARAMS = shortened()
TEXT = yaml.safe_dump(PARAMS)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.binary(max_size=4),
    st.sampled_from(["..", "a/b", "<b>", "conv4_2", "1e-3", "https://me:secret@h/", "\ud800"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path of every node below a tree."""
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield (*path, key)
        yield from places(tree[key], (*path, key))


PLACES = list(places(PARAMS))


@st.composite
def mutated_params(draw: st.DrawFn) -> dict[str, Any]:
    """The shipped parameters with nodes replaced, deleted, renamed or put somewhere else."""
    params = copy.deepcopy(PARAMS)
    for _ in range(draw(st.integers(1, 3))):
        *parents, key = draw(st.sampled_from(PLACES))
        node: Any = params
        try:
            for each in parents:
                node = node[each]
            old = node[key]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier mutation took it away
        if not isinstance(node, dict | list):
            continue  # or put something else there
        action = draw(st.sampled_from(["replace", "delete", "rename", "retype"]))
        if action == "delete":
            del node[key]
        elif action == "rename" and isinstance(node, dict):
            node[draw(scalars)] = node.pop(key)
        elif action == "retype":
            node[key] = draw(st.sampled_from([[old], {"a": old}, str(old), repr(old)]))
        else:
            node[key] = draw(values)
    return params


@st.composite
def mutated_text(draw: st.DrawFn) -> bytes:
    """The shipped file with bytes changed, and pieces of YAML put in."""
    text = bytearray(TEXT.encode())
    pieces = st.one_of(
        st.binary(max_size=4),
        st.sampled_from([b"&a ", b"*a", b"!!int ", b"<<: ", b"\t", b"{", b"[", b"- ", b"? ", b"|"]),
        st.text(max_size=4).map(lambda text: text.encode("utf-8", "replace")),
    )
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        text[start : start + draw(st.integers(0, 30))] = draw(pieces)
    return bytes(text)


def refusal(read: Callable[[Path], object], path: Path) -> UserError | None:
    """Returns why a file is refused, None if it is read; anything else is a failure."""
    try:
        read(path)
    except UserError as error:
        return error
    return None


def assert_read_or_named(path: Path) -> None:
    error = refusal(read_params, path)
    assert error is None or str(error).startswith(str(path))
    assert "secret" not in str(error)


@examples(0.25)
@given(params=mutated_params())
def test_mutated_params_are_read_or_named(
    params: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_bytes(yaml.dump(params, allow_unicode=False).encode())
    assert_read_or_named(path)


@examples(0.75)
@given(text=mutated_text())
def test_mutated_text_of_params_is_read_or_named(
    text: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_bytes(text)
    assert_read_or_named(path)


weights = st.floats(0.0, 1e12)
layers = st.dictionaries(
    st.sampled_from(ARCHITECTURES["vgg19-small"]), st.floats(1e-6, 1e6), min_size=1
)
legal_settings = st.fixed_dictionaries(
    {"style_layers": layers, "content_layers": layers, "content_weight": st.floats(1e-6, 1e6)},
    optional={
        "style_weight": weights,
        "variation_weight": weights,
        "range_weight": weights,
        "convention": st.sampled_from(get_args(LossConvention)),
        "init": st.sampled_from(["noise", "content", "style"]),
        "seed": st.integers(0, 2**63 - 1),
        "size": st.none() | st.integers(16, 16384),
        "first_step": st.floats(1e-30, 1),
        "lbfgs": st.fixed_dictionaries({}, optional={"lr": st.floats(1e-30, 1e30)}),
        "intermediates": st.lists(st.integers(1, 10**6), max_size=3),
    },
)
# PyYAML writes 08, which readers of YAML 1.2 take for a number, without quotes.
names = st.from_regex(r"[a-z][a-z0-9_-]{0,63}", fullmatch=True)
# But for control characters, ends of lines and what DVC replaces.
legal_text = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="$\ufffe\uffff"),
    min_size=1,
    max_size=20,
).filter(str.strip)


@examples(0.05)
@given(experiments=st.dictionaries(names, legal_settings, min_size=1, max_size=3), title=legal_text)
def test_params_written_down_and_read_again_are_the_same(
    experiments: dict[str, Any], title: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "again.yaml"
    pictures = dict.fromkeys(("content", "style"), next(iter(PARAMS["images"])))
    params = PARAMS | {
        "experiments": {name: pictures | each for name, each in experiments.items()},
        "figures": {"one": {"title": title, "rows": [list(experiments)]}},
        "grids": {},
    }
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    first = read_params(path)
    assert list(first.experiments) == list(experiments)
    again = yaml.safe_dump(first.model_dump(mode="json"), allow_unicode=True)
    path.write_text(again, encoding="utf-8")
    assert read_params(path) == first


# Pictures and weights.


def pictures() -> dict[str, bytes]:
    """Returns a picture in every format that is read, and in the formats' own kinds of it."""
    picture = Image.linear_gradient("L").resize((24, 16)).convert("RGB")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    extras: dict[str, Any] = {"exif": exif, "icc_profile": srgb}
    made = {
        "JPEG": encoded(picture, "JPEG", **extras),
        "progressive JPEG": encoded(picture, "JPEG", progressive=True),
        "CMYK JPEG": of_mode("CMYK", (1, 2, 3, 4), "JPEG"),
        "PNG": encoded(picture, "PNG", **extras),
        "palette PNG": clear_palette(),
        "16-bit PNG": sixteen_bits(99),
        "GIF": encoded(picture.convert("P"), "GIF", transparency=1),
        "WebP": encoded(picture, "WEBP", **extras),
        "lossless WebP": encoded(picture.convert("RGBA"), "WEBP", lossless=True),
        "BMP": encoded(picture, "BMP"),
        "HEIC": encoded(picture, "HEIF"),
        "AVIF": encoded(picture, "AVIF"),
    }
    for compression in (None, "tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        made[f"TIFF {compression}"] = encoded(picture, "TIFF", compression=compression, exif=exif)
    return made


def weight_files() -> dict[str, bytes]:
    tensors = first_layer()
    return {".pth": pickled(tensors), ".safetensors": safetensors(tensors)}


PICTURES, WEIGHTS = pictures(), weight_files()
numbers = st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\x20\0"])


@st.composite
def mutated(draw: st.DrawFn, originals: dict[str, bytes]) -> tuple[str, bytes]:
    """The name of an original, and its bytes changed in some places, in the header above all."""
    name = draw(st.sampled_from(sorted(originals)))
    content = bytearray(originals[name])
    for _ in range(draw(st.sampled_from([1, 1, 2, 3, 8]))):
        end = draw(st.sampled_from([32, 64, 200, len(content)]))
        start = draw(st.integers(0, max(0, min(end, len(content)) - 1)))
        action = draw(st.sampled_from(["byte", "byte", "number", "cut", "insert", "end", "repeat"]))
        if action == "byte":
            content[start : start + 1] = bytes([draw(st.integers(0, 255))])
        elif action == "number":
            content[start : start + 4] = draw(numbers)
        elif action == "cut":
            del content[start : start + draw(st.integers(1, 20))]
        elif action == "insert":
            content[start:start] = draw(st.binary(max_size=8))
        elif action == "end":
            del content[start:]
        else:
            content[start:start] = content[start : start + 40]
    whole = bytes(content)
    return name, with_checksums(whole) if draw(st.booleans()) else whole


def with_checksums(png: bytes) -> bytes:
    """Returns a PNG whose checksums are right, so that what is wrong is looked at; or the bytes."""
    position, made = 8, bytearray(png)
    while png.startswith(b"\x89PNG") and position + 12 <= len(png):
        length = int.from_bytes(png[position : position + 4], "big")
        end = position + 8 + length
        made[end : end + 4] = zlib.crc32(png[position + 4 : end]).to_bytes(4, "big")
        position = end + 4
    return bytes(made[: len(png)])


@examples()
@given(file=mutated(PICTURES))
def test_mutated_picture_is_read_or_named(
    file: tuple[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "picture"
    path.write_bytes(file[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        error = refusal(read_picture, path)
    if error is not None:
        assert str(error).startswith(str(path))
        assert not isinstance(error.__cause__, UserWarning)  # a warning is no reason to refuse


@examples(0.1)
@given(file=mutated(WEIGHTS))
@pytest.mark.parametrize("load", [load_small, lambda path: load_weights(path, "torchvision")])
def test_mutated_weights_are_named(
    load: Callable[[Path], object],
    file: tuple[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = (tmp_path_factory.getbasetemp() / "weights").with_suffix(file[0])
    path.write_bytes(file[1])
    with pytest.raises(UserError, match=r"weights\.(pth|safetensors)"):
        load(path)
