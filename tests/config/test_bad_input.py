"""Bad input through the real command line: one sentence, an exit code, and nothing lost.

Among it stands input that looks bad and is legal: it must come in with the right pixels.
"""

from __future__ import annotations

import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import REPOSITORY, tiny_params, write_params, write_plans_again
from hostile import (
    COLOUR,
    Case,
    Opener,
    animated,
    bad_params,
    bad_picture,
    bad_source,
    bad_text,
    bad_weights,
    billion_laughs,
    bomb,
    clear_palette,
    cut,
    encoded,
    first_layer,
    legal_picture,
    noise,
    of_another_network,
    of_mode,
    pickled,
    plain,
    sixteen_bits,
    too_small,
    turned,
    write,
)
from picture_server import server
from PIL import Image
from safetensors.torch import save as safetensors

from pipeline import paths
from pipeline.config.params import read_params
from pipeline.config.schema import Backbone
from pipeline.imaging.downloads import Limit, locate
from pipeline.imaging.picture_files import read_picture
from pipeline.networks.layers import LAYERS
from pipeline.networks.prepare import prepare
from pipeline.networks.weight_files import EMBEDDED
from pipeline.stages.fetch import fetch

__all__ = ["server"]

SERVER = "http://127.0.0.1:0"
"""Stands in the table for the address of the server that misbehaves."""

FORMATS = "Give a file in one of the formats JPEG, PNG, TIFF, WEBP, GIF, BMP, HEIF, AVIF"
SHORT = "cannot be read as a picture, or is cut short: image file is truncated"
BYTES_LEFT = " (… bytes not processed). Get it anew"
FRAMES = "has several frames; one is needed. Save the one you want"
STATE_DICT = "A state_dict saved as .pth or .safetensors is needed"
UNSAFE = f" cannot be read as weights: it is cut short, or holds more than tensors. {STATE_DICT}"
NOT_VGG = (
    " has neither features.0.weight nor conv1_1.weight: it is not VGG-19 in torchvision's or the "
    "authors' layout. Its first keys are "
)
ONE = " has 1 mistake(s):\n  "
A_NAME = "a name has up to 64 letters, digits, '-' and '_', and begins with a letter or digit"
CREDENTIALS = (
    "an address with a user or a password in it is refused, since addresses are recorded with the "
    "pictures. Download the file yourself, and give its path"
)
BY_HAND = "Download it yourself, and give its path as source"
SCHEMES = "is not read, only https:// and http://. For a file on this machine give its path"
SECTIONS = (
    "images, defaults, experiments, figures, backbone, cast, grids, distillation, tracking, "
    "checkpoints"
)
ALIASES = (
    ": its aliases stand for more than 1,048,576 characters and values. Write out what you need"
)
HTML = "<!DOCTYPE html><title>404</title>"
SVG = '<svg xmlns="http://www.w3.org/2000/svg"/>'
WHITE, GREY = (255, 255, 255), (128, 128, 128)

CASES: list[Case] = [
    # Pictures that are none, or that nobody can mean.
    bad_picture("zero bytes", "a.jpg", b"", f"is not a picture: it is empty. {FORMATS}"),
    bad_picture(
        "truncated JPEG",
        "a.jpg",
        cut(noise("JPEG")),
        "cannot be read as a picture, or is cut short: pixels are missing at its end. Get it anew",
    ),
    bad_picture("truncated PNG", "a.png", cut(noise("PNG")), f"{SHORT}. Get it anew"),
    bad_picture(
        "truncated TIFF",
        "a.tif",
        cut(noise("TIFF")),
        SHORT + BYTES_LEFT,
    ),
    bad_picture(
        "HTML",
        "page.jpg",
        HTML,
        f"is not a picture: it starts with b'<!DOCTYPE html><title>40'. {FORMATS}",
    ),
    bad_picture(
        "SVG",
        "a.svg",
        SVG,
        f"is not a picture: it starts with b'<svg xmlns=\"http://www.w'. {FORMATS}",
    ),
    bad_picture(
        "EPS, which would run another program",
        "a.eps",
        "%!PS-Adobe-3.0 EPSF-3.0\n",
        f"is not a picture: it starts with b'%!PS-Adobe-3.0 EPSF-3.0\\n'. {FORMATS}",
    ),
    bad_picture("animated GIF", "a.gif", animated("GIF"), FRAMES),
    bad_picture("animated PNG", "a.png", animated("PNG"), FRAMES),
    bad_picture("TIFF of several pages", "a.tif", animated("TIFF"), FRAMES),
    bad_picture(
        "floating point",
        "a.tif",
        encoded(Image.new("F", (8, 8)), "TIFF"),
        "has floating point pixels. Save it with 8 or 16 bits",
    ),
    bad_picture(
        "20000x20000 bomb",
        "a.png",
        bomb(),
        "is too large: at most 89 million pixels are read. Reduce it first",
    ),
    too_small("1x1 as it is", (1, 1), "image is 1x1 pixels; conv… needs at least …"),
    too_small("5x4000 as it is", (5, 4000), "image is 4000x5 pixels; conv5_1 needs at least 16x16"),
    # Pictures that are odd, and legal.
    legal_picture("1x1", "a.png", plain("PNG", (1, 1)), (1, 1), COLOUR),
    legal_picture("5x4000", "a.png", plain("PNG", (5, 4000)), (5, 4000), COLOUR),
    legal_picture("CMYK", "a.tif", of_mode("CMYK", (0, 255, 255, 0)), (8, 8), (255, 0, 0)),
    legal_picture("16-bit", "a.png", sixteen_bits(128), (6, 4), GREY),
    legal_picture("palette with alpha", "a.png", clear_palette(), (8, 8), WHITE),
    legal_picture("GIF of one frame", "a.gif", of_mode("L", 128, "GIF"), (8, 8), GREY),
    legal_picture("wrong extension", "a.jpg", plain("PNG"), (40, 30), COLOUR),
    legal_picture("no extension", "picture", plain("PNG"), (40, 30), COLOUR),
    legal_picture("EXIF-rotated", "a.png", turned(), (30, 40), WHITE),
    legal_picture("unicode in the name", "Zoë ✓ 猫.png", plain("PNG"), (40, 30), COLOUR),
    legal_picture("newline in the name", "a\nb.png", plain("PNG"), (40, 30), COLOUR),
    legal_picture("HTML in the name", "<b>&amp;.png", plain("PNG"), (40, 30), COLOUR),
    legal_picture("broken ICC", "a.png", plain("PNG", icc_profile=b"none"), (40, 30), COLOUR),
    # Sources that lead nowhere, or where nobody wants to go.
    bad_source("directory", "own", ": own is a folder. Name a file in it"),
    # Root may read every file. What nobody may is the start of a process's memory.
    bad_source(
        "unreadable",
        "/proc/self/mem",
        " cannot be read as a picture, or is cut short: [Errno 5] Input/output error. Get it anew",
    ),
    bad_source(
        "file in the place of a folder",
        "own/subject.png/a.png",
        ": there is no file own/subject.png/a.png. Correct the source",
    ),
    bad_source(
        "symlink loop", "own/loop.png", ": there is no file own/loop.png. Correct the source"
    ),
    bad_source(
        "dangling link",
        "own/dangling.png",
        ": there is no file own/dangling.png. Correct the source",
    ),
    bad_source(
        "name too long", "a" * 300, " cannot be read: File name too long. Correct the source"
    ),
    bad_source(
        "package that is the program",
        "package:__main__/a.png",
        " cannot be read: __main__.__spec__ is …. Correct the source",
    ),
    bad_source("file address", "file:///etc/passwd", f": file:// {SCHEMES}"),
    bad_source("unknown scheme", "ftp://127.0.0.1/a.jpg", f": ftp:// {SCHEMES}"),
    bad_source(
        "address that is none",
        "http://[/a.jpg",
        " is no address: Invalid IPv6 URL. Correct the source",
    ),
    bad_source(
        "redirect to a file",
        f"{SERVER}/file.jpg",
        " leads to an address that is neither https:// nor http:// (No connection adapters were "
        "found for 'file:///etc/passwd'). Correct the source",
    ),
    bad_source(
        "server that never ends",
        f"{SERVER}/endless.jpg",
        f" sends more than 1 MiB, the most that is taken. {BY_HAND}",
    ),
    bad_source(
        "server that sends a byte now and then",
        f"{SERVER}/drip.jpg",
        f" took more than 1 s, the most that a download may take. {BY_HAND}",
    ),
    # Files of weights.
    bad_weights(
        "truncated weights",
        "w.safetensors",
        cut(safetensors(first_layer())),
        " cannot be read as weights: Error while deserializing header: incomplete metadata, file "
        f"not fully covered. {STATE_DICT}",
    ),
    bad_weights("truncated pickle", "w.pth", cut(pickled(first_layer())), UNSAFE),
    bad_weights("HTML for weights", "w.pth", HTML, UNSAFE),
    bad_weights(
        "empty weights",
        "w.safetensors",
        b"",
        " cannot be read as weights: Error while deserializing header: header too small. "
        f"{STATE_DICT}",
    ),
    bad_weights("pickle with code in it", "w.pth", pickled(first_layer(bias=Opener())), UNSAFE),
    bad_weights(
        "pickle of a list",
        "w.pth",
        pickled([torch.zeros(3)]),
        " holds a list. A state_dict is needed",
    ),
    bad_weights(
        "wrong shapes",
        "w.pth",
        pickled(first_layer(bias=torch.zeros(32))),
        ": bias of conv1_1 is (32,); VGG-19 has (64,). Give a file of VGG-19",
    ),
    bad_weights(
        "wrong keys",
        "w.pth",
        pickled({"conv1_1.kernel": torch.zeros(3)}),
        f"{NOT_VGG}conv1_1.kernel",
    ),
    bad_weights(
        "other architecture",
        "w.safetensors",
        of_another_network(),
        f"{NOT_VGG}bn1.bias, conv1.weight",
    ),
    bad_weights(
        "NaN inside",
        "w.pth",
        pickled(first_layer(bias=torch.full((64,), torch.nan))),
        ": bias of conv1_1 holds NaN or infinity. Get it anew",
    ),
    bad_weights(
        "whole numbers",
        "w.pth",
        pickled(first_layer(bias=torch.zeros(64).int())),
        ": bias of conv1_1 is torch.int32 as torch.strided; floating point as torch.strided is "
        "needed. Give a file of VGG-19",
    ),
    bad_weights(
        "number for a tensor",
        "w.pth",
        pickled(first_layer(bias=1.0)),
        ": bias of conv1_1 is a float; a tensor is needed. Give a file of VGG-19",
    ),
    bad_weights(
        "small network for VGG-19",
        "w.safetensors",
        EMBEDDED.read_bytes(),
        " is a vgg19-small, not VGG-19. Set backbone.architecture: vgg19-small, or give a file of "
        "VGG-19",
    ),
    bad_weights(
        "VGG-19 for a small network",
        "w.pth",
        pickled(first_layer()),
        " has no conv1_1.bias: it is not a vgg19-small. For a file of VGG-19 set "
        "backbone.architecture: vgg19",
        network="vgg19-small",
    ),
    # Mistakes in params.yaml.
    bad_params(
        "unknown key",
        lambda p: p["tracking"].update(modus="online"),
        f"{ONE}tracking.modus: unknown key. Did you mean 'mode'? The keys are mode, project, "
        "entity, group, tags, init_timeout, finish_timeout",
    ),
    bad_params(
        "wrong type",
        lambda p: p["defaults"].update(seed="x"),
        f"{ONE}defaults.seed: 'x': Input should be a valid integer, unable to parse string as an "
        "integer",
    ),
    bad_params(
        "negative size",
        lambda p: p["defaults"].update(size=-5),
        f"{ONE}defaults.size: -5: Input should be greater than or equal to 16",
    ),
    bad_params(
        "unknown layer",
        lambda p: p["defaults"].update(content_layers=["conv4_9"]),
        f"{ONE}defaults.content_layers: ['conv4_9']: unknown layer 'conv4_9'. Did you mean "
        f"'conv4_4'? The layers are {', '.join(LAYERS)}",
    ),
    bad_params(
        "unknown image",
        lambda p: p["experiments"]["new"].update(style="subjct"),
        f"{ONE}experiments.new.style: no image 'subjct' in the catalogue. Did you mean 'subject'? "
        "The images are other, subject",
    ),
    bad_params(
        "empty list",
        lambda p: p["backbone"].update(calibration=[]),
        f"{ONE}backbone.calibration: []: List should have at least 1 item after validation, not 0",
    ),
    bad_params(
        "name with a slash",
        lambda p: p["images"].update({"a/b": {"source": "a"}}),
        f"{ONE}images.a/b: 'a/b': {A_NAME}",
    ),
    bad_params(
        "name that leads up",
        lambda p: p["experiments"].update({"..": {"content": "other", "style": "subject"}}),
        f"{ONE}experiments...: '..': {A_NAME}",
    ),
    bad_params(
        "name with HTML",
        lambda p: p["figures"].update({"<b>": {"title": "F", "rows": [["new"]]}}),
        f"{ONE}figures.<b>: '<b>': {A_NAME}",
    ),
    bad_params(
        "user and password in an address",
        lambda p: p["images"]["subject"].update(source="https://me:secret@127.0.0.1/a.jpg"),
        f"{ONE}images.subject.source: 'https://…@127.0.0.1/a.jpg': {CREDENTIALS}",
    ),
    bad_params(
        "password in the address of weights",
        lambda p: p["backbone"].update(weights="https://me:secret@127.0.0.1/w.pth"),
        f"{ONE}backbone.weights: 'https://…@127.0.0.1/w.pth': {CREDENTIALS}",
    ),
    bad_params(
        "password where no address belongs",
        lambda p: p["images"].update(a="ftp://me:secret@h"),
        f"{ONE}images.a: 'ftp://…@h': a mapping of keys to values is needed",
    ),
    bad_params(
        "null character in a name",
        lambda p: p["images"]["subject"].update(source="own/a\0b.png"),
        ": 'own/a\\x00b.png' at line … has the character U+0000, which DVC and the report cannot "
        "keep. Remove it",
    ),
    bad_params(
        "slash in the password of an address",
        lambda p: p["images"]["subject"].update(source="https://me:se/secret@127.0.0.1/a.jpg"),
        f"{ONE}images.subject.source: 'https://…@127.0.0.1/a.jpg': {CREDENTIALS}",
    ),
    bad_params(
        "password that is longer than what is shown",
        lambda p: p["distillation"].update(
            pictures=[f"https://me:{'secret' * 99}@127.0.0.1/a.jpg"]
        ),
        f"{ONE}distillation.pictures.0: 'https://…@127.0.0.1/a.jpg': {CREDENTIALS}",
    ),
    bad_params(
        "long password where no address belongs",
        lambda p: p["tracking"].update(tags=f"https://me:{'secret' * 99}@127.0.0.1"),
        f"{ONE}tracking.tags: 'https://…@127.0.0.1': Input should be a valid list",
    ),
    bad_params(
        "many mistakes",
        lambda p: p.update({f"a{number}": {} for number in range(23)}),
        f" has 23 mistake(s):\n  a0: unknown key. The keys are {SECTIONS}\n  a1: …\n  and 3 more",
    ),
    # Text that is no params.yaml.
    bad_text(
        "half a character for a key",
        '"\\ud800": 1\n',
        " is not YAML. Correct this: line 1: found invalid Unicode character escape code",
    ),
    bad_text(
        "duplicate name",
        "images: {}\nexperiments:\n  a: {}\n  a: {}\n",
        ": the key 'a' stands twice in the mapping at line 3. Rename one",
    ),
    bad_text("YAML bomb", billion_laughs(), ALIASES),
    bad_text("alias to what it stands in", "experiments: &a [*a]\n", ALIASES),
    bad_text(
        "tabs",
        "images:\n\tcat: 1\n",
        ": line 2 has a tab, which DVC cannot keep. Remove it, or use spaces",
    ),
    bad_text(
        "huge file",
        "#" * (2**20 + 1),
        ": has more than 1,048,576 bytes, the most that is read. Shorten it",
    ),
    bad_text(
        "nested too deep", "[" * 5000, " is nested too deep: five levels are enough. Correct it"
    ),
    bad_text(
        "number too long",
        "a: " + "9" * 5000,
        ": '999…' at line 1 has 5,000 digits. Write a shorter number",
    ),
    bad_text(
        "code in a tag",
        "a: !!python/object/apply:os.system [ls]\n",
        ": what stands at line 1 is a python/object/apply:os.system to YAML, which no setting is. "
        "Put text in quotes, and remove a tag that begins with !",
    ),
    bad_text(
        "tag that does not fit",
        "a: !!timestamp x\n",
        ": 'x' at line 1 is a timestamp to YAML, which no setting is. Put text in quotes, and "
        "remove a tag that begins with !",
    ),
    bad_text(
        "null character in the file",
        "a: \0\n",
        ": line 1 has U+0000, which DVC cannot keep. Remove it, or use spaces",
    ),
    bad_text(
        "mistake of YAML behind a password",
        f'images: {{a: "https://me:{"secret" * 20}@h/a" b}}\n',
        ": 'https://…@h/a' at line 1 has a colon inside { }, where DVC writes it without quotes "
        "and then cannot read it. Write each key on a line of its own, without { }",
    ),
    bad_text("list", "- 1\n", f" holds no mapping. Its sections are {SECTIONS}"),
    bad_text("empty file", "", f" holds no mapping. Its sections are {SECTIONS}"),
]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded network as ``backbone`` leaves it."""
    folder = tmp_path_factory.mktemp("network")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(Backbone(calibration=["package:skimage/data/coffee.png"], rescale=False))
    return folder / paths.BACKBONE


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Path) -> dict[str, Any]:
    """The parameters of a workspace in which every stage has run before."""
    monkeypatch.chdir(tmp_path)
    for folder in ("own", "data/experiments/old", "reports"):
        Path(folder).mkdir(parents=True)
    for name in ("own/other.png", "own/subject.png", "data/experiments/old/image.png"):
        write(name, plain("PNG"))
    write("reports/index.html", "the report of before")
    shutil.copytree(network, paths.BACKBONE)
    Path("own/loop.png").symlink_to("loop.png")
    Path("own/dangling.png").symlink_to("nowhere.png")
    params = tiny_params(Path("own/none"))
    sources = {name: {"source": f"own/{name}.png"} for name in ("other", "subject")}
    experiments = {"new": {"content": "other", "style": "subject"}}
    backbone = {"calibration": ["own/other.png"], "rescale": False}
    tracking = {"mode": "disabled"}
    params |= {
        "images": sources,
        "experiments": experiments,
        "figures": {},
        "backbone": backbone,
        "tracking": tracking,
    }
    write_params(tmp_path, params)
    fetch(read_params())
    write_plans_again()
    return params


def files_here() -> dict[str, bytes]:
    """Returns the workspace, without the record of why a stage failed."""
    files = (path for path in Path().rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files if path.parts[:2] != ("data", "status")}


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Returns the exit code of a stage, or of ``check``, run as ``python -m`` runs it."""
    stage, *arguments = command.split()
    file = "__main__.py" if stage == "check" else f"stages/{stage}.py"
    monkeypatch.setattr(sys, "argv", [file, *(["check"] if stage == "check" else arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "pipeline" / file), run_name="__main__")
    assert isinstance(ended.value.code, int)
    return ended.value.code


def answer(
    case: Case, params: dict[str, Any], server: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, dict[str, bytes]]:
    """Returns the exit code of a case, and the files there were before its command."""
    monkeypatch.setattr(locate, "__defaults__", (Limit(2**20, 1.0),))
    case.change(params)
    written = params.pop("written", None)
    text = yaml.safe_dump(params, allow_unicode=True).replace(SERVER, server)
    write("params.yaml", text if written is None else written)
    if case.command.startswith(("backbone", "stylize")):
        write_plans_again()
    before = files_here()
    return run(case.command, monkeypatch), before


BAD = [case for case in CASES if case.message]
LEGAL = [case for case in CASES if not case.message]


@pytest.mark.parametrize("case", BAD, ids=[case.name for case in BAD])
def test_bad_input_gets_its_sentence_and_harms_nothing(
    case: Case,
    room: dict[str, Any],
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if case.name == "unreadable" and not Path("/proc/self/mem").is_file():
        pytest.skip("this system has no such file")
    code, before = answer(case, room, server, monkeypatch)
    out, err = capsys.readouterr()
    assert code == 1
    progress, _, message = err.replace(server, SERVER).partition("error: ")
    assert re.fullmatch(r"((Downloading file|Failed to download) .*\n)*", progress)
    pattern = re.escape(case.message + "\n").replace("…", ".*")
    assert re.fullmatch(pattern, message, re.DOTALL), message
    assert "secret" not in out + err
    assert files_here() == before


@pytest.mark.filterwarnings("ignore:.* its ICC profile is ignored")
@pytest.mark.parametrize("case", LEGAL, ids=[case.name for case in LEGAL])
def test_odd_picture_comes_in_with_the_right_pixels(
    case: Case,
    room: dict[str, Any],
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _ = answer(case, room, server, monkeypatch)
    assert (code, capsys.readouterr().err) == (0, "")
    picture = read_picture(paths.picture("subject"))
    assert picture.size == case.size
    assert picture.getpixel((0, 0)) == pytest.approx(case.pixel, abs=1)


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40
