"""`transfer CONTENT STYLE` makes one picture, as an experiment of params.yaml would be made."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, save_picture
from PIL import Image

from pipeline.config.params import read_params
from pipeline.errors import UserError
from pipeline.experiments.request import DEFAULTS, Request, default_out, to_params
from pipeline.experiments.single import transfer
from pipeline.imaging.picture_files import read_picture, read_text
from pipeline.transfer.module import StyleTransfer

TINY = ("size=32", "evaluations=12", "device=cpu", "threads=1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's cache, in which the network is prepared once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def folder(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pooch.os_cache", lambda name: cache / name)
    Image.radial_gradient("L").resize((45, 33)).convert("RGB").save("cat.png")
    save_picture(Path("night sky.jpg"))
    return tmp_path


def request(*assignments: str, **options: Any) -> Request:
    return Request("cat.png", ["night sky.jpg"], [*TINY, *assignments], **options)


def test_picture_has_its_settings_and_the_hashes_of_its_inputs(folder: Path, cache: Path) -> None:
    transfer(request("content_weight=0.5"), Path("out.png"))
    assert read_picture(Path("out.png")).size == (32, 23)
    text = read_text(Path("out.png"))
    settings = json.loads(text["Settings"])
    assert settings["content_weight"] == 0.5
    assert (settings["content"], settings["style"]) == ("cat", "night-sky")
    assert {"content", "style", "weights"} <= set(json.loads(text["Inputs"]))
    assert "style-transfer-pipeline" in text["Software"]
    assert list((cache / "style-transfer/runs").iterdir()) == []
    assert {path.name for path in folder.iterdir()} == {"cat.png", "night sky.jpg", "out.png"}


def test_defaults_are_those_of_params_but_for_the_size() -> None:
    shipped = read_params(REPOSITORY / "params.yaml")
    given = to_params(request(), vgg19_is_here=False)
    here, there = (each.defaults.model_dump() for each in (given, shipped))
    assert {key for key in here if here[key] != there[key]} == {"size", "intermediates"}
    assert here["size"] == DEFAULTS["size"]
    assert given.backbone == shipped.backbone


def interrupted(request: Request, steps: int) -> object:
    """Runs a transfer that is interrupted after some steps, and returns its exit status."""
    honest = StyleTransfer.optimizer_step

    def step(self: StyleTransfer, *arguments: Any, **options: Any) -> None:
        honest(self, *arguments, **options)
        if self.run.iterations == steps:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StyleTransfer, "optimizer_step", step)
        with pytest.raises(SystemExit) as ended:
            transfer(request, Path("out.png"))
    return ended.value.code


@pytest.mark.parametrize("colour", ["style", "luminance"])
def test_interrupt_leaves_the_best_image_and_the_same_command_goes_on(
    colour: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transfer(request(f"colour={colour}"), Path("whole.png"))
    assert interrupted(request(f"colour={colour}"), 5) == 130
    assert read_picture(Path("out.png")).size == (32, 23)
    assert "the best image so far is" in capsys.readouterr().out
    transfer(request(f"colour={colour}"), Path("out.png"))
    assert "goes on after evaluation" in capsys.readouterr().out
    assert Path("out.png").read_bytes() == Path("whole.png").read_bytes()


def test_interrupted_coarse_phase_leaves_a_picture_of_the_whole_size(folder: Path) -> None:
    coarse = "sizes=[{size: 24, evaluations: 9}]"
    assert interrupted(request(coarse, "size=40"), 5) == 130
    assert read_picture(Path("out.png")).size == (40, 29)


def test_several_styles_and_masks_are_named_by_their_files(folder: Path) -> None:
    save_picture(Path("dots.png"))
    mask = Image.new("L", (45, 33))
    mask.paste(255, (0, 0, 30, 33))
    mask.save("left.png")
    styles = "style=[{image: night-sky, content_mask: left}, dots]"
    given = Request(
        "cat.png",
        ["night sky.jpg", "dots.png"],
        [*TINY, styles, "style_layers=[conv1_1]"],
        ["left=left.png"],
    )
    transfer(given, Path("out.png"))
    assert {"style_1", "style_2", "style_1_content_mask"} <= set(
        json.loads(read_text(Path("out.png"))["Inputs"])
    )
    assert default_out(given) == Path("cat-night sky-dots.png")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("content_wieght=1", "Did you mean 'content_weight'"),
        ("size=4", "greater than or equal to 16"),
        ("size", "write KEY=VALUE"),
        ("lbfgs.history_size.x=1", "experiments.transfer.lbfgs"),
        ("backbone.pooling=median", "backbone.pooling"),
        ("style=[night]", "Did you mean 'night-sky'"),
        ("init=catt", "Did you mean 'cat'"),
        ("content_layers=[conv4_2", "is not YAML"),
    ],
)
def test_mistake_is_named_before_anything_is_computed(
    assignment: str, message: str, folder: Path
) -> None:
    with pytest.raises(UserError, match=r"(?s)" + message.replace("[", r"\[")):
        transfer(request(assignment), Path("out.png"))
    assert not Path("out.png").exists()


@pytest.mark.parametrize(
    ("out", "assignment", "message"),
    [
        ("out.gif", "size=32", "written as .png, .tif"),
        ("nowhere/out.png", "size=32", "there is no folder"),
        ("out.jpg", "output.bits=16", "JPEG holds 8 bits of a colour, not 16"),
        ("out.jpg", "output.alpha=true", "JPEG holds no transparency"),
    ],
)
def test_output_that_cannot_be_written_is_named_before_anything_is_computed(
    out: str, assignment: str, message: str, folder: Path
) -> None:
    with pytest.raises(UserError, match=message):
        transfer(request(assignment, "content_weight=123"), Path(out))


def test_format_is_that_of_the_suffix(folder: Path) -> None:
    transfer(request("output.bits=16"), Path("out.tif"))
    assert read_picture(Path("out.tif")).size == (32, 23)


def test_preset_sets_what_is_not_given_and_must_not_be_contradicted(folder: Path) -> None:
    weights = "backbone.weights=vgg.pth"
    given = Request("cat.png", ["night sky.jpg"], ["size=256", weights], preset="neural-style")
    params = to_params(given, vgg19_is_here=False)
    experiment = params.experiments["transfer"]
    assert (experiment.style_weight, experiment.size, experiment.evaluations) == (100, 256, 1000)
    assert params.backbone.weights == str(folder / "vgg.pth")
    for wrong in ("backbone.pooling=avg", "style_layers=[conv1_1]"):
        with pytest.raises(UserError, match="the preset neural-style"):
            to_params(given._replace(assignments=[wrong, weights]), vgg19_is_here=False)
    with pytest.raises(UserError, match="Leave one out"):
        to_params(given._replace(quality="preview"), vgg19_is_here=False)


@pytest.mark.parametrize(
    ("assignments", "here", "weights"),
    [
        ((), False, "embedded"),
        ((), True, "imagenet"),
        (("backbone.weights=/a/vgg19.pth",), False, "/a/vgg19.pth"),
        (
            ("backbone.weights=https://example.org/vgg19.pth",),
            True,
            "https://example.org/vgg19.pth",
        ),
        (("backbone.weights=embedded",), True, "embedded"),
    ],
)
def test_final_takes_vgg19_where_its_weights_are_here_or_given(
    assignments: tuple[str, ...], here: bool, weights: str
) -> None:
    given = Request("cat.png", ["night.jpg"], assignments, quality="final")
    params = to_params(given, vgg19_is_here=here)
    vgg19 = weights != "embedded"
    assert params.backbone.weights == weights
    assert params.backbone.architecture == ("vgg19" if vgg19 else "vgg19-small")
    assert params.experiments["transfer"].warm_start == ("embedded" if vgg19 else None)
    assert params.experiments["transfer"].size == 1024


def test_large_size_is_reached_through_smaller_ones() -> None:
    given = Request("cat.png", ["night.jpg"])
    small, large = (
        to_params(given._replace(size=size), vgg19_is_here=False).experiments["transfer"]
        for size in (800, 8000)
    )
    assert (small.size, small.sizes, small.evaluations) == (800, [], 200)
    assert large.size == 8000
    phases = [(phase.size, phase.evaluations) for phase in large.sizes]
    assert phases == [(512, 200), (1024, 100), (2048, 50), (4096, 25)]
    assert (large.evaluations, large.tile, large.lbfgs.history_size) == (20, "auto", 10)
    with pytest.raises(UserError, match="has sizes of its own"):
        to_params(given._replace(size=8000, preset="neural-style"), vgg19_is_here=False)


def test_missing_picture_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*dog\.png"):
        transfer(Request("dog.png", ["night sky.jpg"], TINY), Path("out.png"))


def test_saved_experiment_is_the_same_and_all_other_lines_stay(folder: Path) -> None:
    before = (REPOSITORY / "params.yaml").read_text("utf-8")
    Path("params.yaml").write_text(before, "utf-8")
    given = request("lbfgs.history_size=7", "style={image: night-sky, scale: 1.5}")
    transfer(given, Path("out.png"), save_as="mine")
    lines = Path("params.yaml").read_text("utf-8").splitlines()
    assert [line for line in lines if line in before.splitlines()] == before.splitlines()
    params = read_params()
    saved, computed = (
        each.model_dump(exclude={"intermediates"})
        for each in (
            params.experiments["mine"],
            to_params(given, False).experiments["transfer"],
        )
    )
    assert saved == computed
    assert params.images["cat"].source == "cat.png"
    with pytest.raises(UserError, match="has an experiment 'mine'"):
        transfer(given, Path("out.png"), save_as="mine")


def test_installed_wheel_makes_a_picture_in_any_folder(folder: Path) -> None:
    source = folder / "source"  # a build leaves files where it runs
    shutil.copytree(REPOSITORY / "pipeline", source / "pipeline")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(REPOSITORY / name, source / name)
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*wheel, "--wheel-dir", str(folder), str(source)], check=True)
    (file,) = folder.glob("*.whl")
    installed = folder / "installed"
    zipfile.ZipFile(file).extractall(installed)
    code = "from pipeline.__main__ import style_transfer; style_transfer()"
    sets = [word for each in TINY for word in ("--set", each)]
    done = subprocess.run(
        [sys.executable, "-c", code, "cat.png", "night sky.jpg", *sets],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(folder / "xdg")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"{installed}" in done.stdout, "the embedded network is the wheel's"
    assert read_picture(folder / "cat-night sky.png").size == (32, 23)
