"""Mistakes in styles, masks, starts and sizes, and the roles of the cast in them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY, tiny_params, write_params
from dvc.utils.hydra import apply_overrides
from PIL import Image

from pipeline import paths
from pipeline.config.params import read_params
from pipeline.errors import UserError
from pipeline.transfer.build import read_inputs

SHIPPED = yaml.safe_load((REPOSITORY / "params.yaml").read_text("utf-8"))
MASKED = {"image": "coffee", "content_mask": "gravel"}
VGG = {"architecture": "vgg19", "weights": "imagenet"}


def with_controls(tmp_path: Path, backbone: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Writes params.yaml with the one experiment ``mine``, and returns its path."""
    params = copy.deepcopy(SHIPPED)
    params["experiments"] = {"mine": {"content": "chelsea", "style": "glass", **settings}}
    params["figures"] = {}
    params["backbone"] |= backbone or {}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    return path


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("empty list of styles", {"style": []}, "style: []: List should have at least 1 item"),
    ("style that is a number", {"style": [3]}, "mine.style.0: 3: YAML reads it as a number"),
    ("style without a picture", {"style": {"weight": 1}}, "mine.style.image: is missing. Add it"),
    ("style that is no name", {"style": "a b"}, "mine.style: 'a b': a name has up to 64"),
    ("style of a list that is no name", {"style": ["glass", "a b"]}, "mine.style.1: 'a b': a name"),
    (
        "mask that is no name",
        {"style": {"image": "glass", "content_mask": "a b"}},
        "mine.style.content_mask: 'a b': a name",
    ),
    (
        "unknown key of a style",
        {"style": [{"image": "glass", "wieght": 2}]},
        "style.0.wieght: unknown key. Did you mean 'weight'?",
    ),
    (
        "unknown key of a mask",
        {"style": {"image": "glass", "content_mask": {"image": "dots", "lable": "#ffffff"}}},
        "mine.style.content_mask.lable: unknown key. Did you mean 'label'?",
    ),
    (
        "label that is no colour",
        {"style": {"image": "glass", "style_mask": {"image": "dots", "label": "red"}}},
        "mine.style.style_mask.label: 'red': String should match pattern '^#[0-9a-fA-F]{6}$'",
    ),
    (
        "unknown style in a list",
        {"style": ["glass", "bruswork"]},
        "style_2: no image 'bruswork' in the catalogue. Did you mean 'brushwork'? The images are",
    ),
    (
        "unknown mask",
        {"style": ["glass", {"image": "dots", "content_mask": "gravle"}]},
        "style_2_content_mask: no image 'gravle' in the catalogue. Did you mean 'gravel'?",
    ),
    (
        "unknown mask of a style image",
        {"style": {"image": "dots", "style_mask": {"image": "gravle"}}},
        "style_mask: no image 'gravle' in the catalogue. Did you mean 'gravel'?",
    ),
    (
        "unknown start",
        {"init": "chlesea"},
        "init: no image 'chlesea' in the catalogue. Did you mean 'chelsea'?",
    ),
    ("unknown start, and the other ones", {"init": "noisy"}, "; or init is noise, content, style"),
    (
        "style of weight 0",
        {"style": [{"image": "glass", "weight": 0}]},
        "style.0.weight: 0: Input should be greater than 0",
    ),
    (
        "style of negative weight",
        {"style": ["dots", {"image": "glass", "weight": -1.5}]},
        "style.1.weight: -1.5: Input should be greater than 0",
    ),
    (
        "style of weight true",
        {"style": [{"image": "glass", "weight": True}]},
        "style.0.weight: True: YAML reads it as a truth value. Write a number",
    ),
    (
        "style of no size",
        {"style": [{"image": "glass", "scale": 0}]},
        "style.0.scale: 0: Input should be greater than or equal to 0.05",
    ),
    (
        "all weights 0",
        {"style_weight": 0, "content_weight": 0, "moments_weight": 0},
        "mine: nothing to optimise: every weight is 0, or no layers are listed",
    ),
    (
        "unknown layer of a style",
        {"style": {"image": "glass", "layers": ["conv9_1"]}},
        "mine.style.layers: ['conv9_1']: unknown layer 'conv9_1'",
    ),
    (
        "style without layers",
        {"style": {"image": "glass", "layers": []}},
        "mine.style.layers: []: List should have at least 1 item",
    ),
    (
        "layer of no style",
        {"style": [{"image": each, "layers": ["conv1_1", "conv5_1"]} for each in ("dots", "ihc")]},
        "no style has the layer conv2_1 of style_layers. Add it to the layers of a style, or",
    ),
    (
        "layer of no style, of a loss that is only recorded",
        {"style": {"image": "dots", "layers": ["conv1_1"]}, "style_weight": 0},
        "no style has the layer conv2_1 of style_layers.",
    ),
    (
        "layer of no loss",
        {"style": ["dots", {"image": "glass", "layers": ["conv1_2"]}]},
        "the style glass has the layer conv1_2, which no loss compares. Add it to style_layers, or",
    ),
    (
        "mask and a loss without masks",
        {"style": MASKED, "histogram_weight": 2.0},
        "masks guide Gram matrices alone. Set histogram_weight to 0, or remove the masks",
    ),
    (
        "mask of a style image and a loss without masks",
        {"style": {"image": "glass", "style_mask": "dots"}, "spectrum_weight": 2.0},
        "masks guide Gram matrices alone. Set spectrum_weight to 0, or remove the masks",
    ),
    (
        "mask and a loss whose layers have no weight",
        {"style": MASKED, "moments_weight": 1.0, "moments_layers": {"conv1_1": 0}},
        "masks guide Gram matrices alone. Set moments_weight to 0, or remove the masks",
    ),
    (
        "regions whose Gram matrices are mixed",
        {"style": ["glass", MASKED], "style_mix": "gram_matrices"},
        "content masks give each style a region. Set style_mix to losses",
    ),
    (
        "sizes on the embedded network, which is the network",
        {"sizes": [{"size": 64, "evaluations": 5, "network": "embedded"}]},
        "mine.sizes: the whole run is on the embedded network. Leave out network: embedded, or set",
    ),
    (
        "unknown key of a size",
        {"sizes": [{"size": 64, "evaluation": 5}]},
        "sizes.0.evaluation: unknown key. Did you mean 'evaluations'?",
    ),
    ("colours of no kind", {"colour": "histogram"}, "colour: 'histogram': Input should be 'style'"),
]


@pytest.mark.parametrize(
    ("settings", "message"), [case[1:] for case in MISTAKES], ids=[case[0] for case in MISTAKES]
)
def test_mistake_is_named(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        read_params(with_controls(tmp_path, **settings))
    assert message in str(raised.value)
    assert "experiments.mine" in str(raised.value)


def test_layer_that_the_network_of_a_size_lacks_is_named(tmp_path: Path) -> None:
    sizes = [{"size": 64, "evaluations": 5, "network": "embedded"}]
    with pytest.raises(UserError, match=r"style_layers, for its sizes vgg19-small: this network"):
        read_params(with_controls(tmp_path, VGG, sizes=sizes, style_layers=["conv3_4"]))
    assert read_params(with_controls(tmp_path, VGG, sizes=sizes)).experiments["mine"].sizes


@pytest.mark.parametrize("name", ["noise", "content", "style"])
@pytest.mark.parametrize("section", ["images", "cast"])
def test_picture_with_the_name_of_a_start_is_refused(
    section: str, name: str, tmp_path: Path
) -> None:
    params = copy.deepcopy(SHIPPED)
    params[section][name] = params["images"]["coffee"] if section == "images" else "coffee"
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    with pytest.raises(
        UserError, match=rf"{section}.{name}: init has a value of that name. Rename the picture"
    ):
        read_params(path)


def test_style_masks_may_be_mixed(tmp_path: Path) -> None:
    style = ["glass", {"image": "dots", "style_mask": "dots"}]
    assert read_params(with_controls(tmp_path, style=style, style_mix="gram_matrices"))


def test_reconstruction_of_several_styles_is_refused(tmp_path: Path) -> None:
    params = yaml.safe_load(with_controls(tmp_path, content_layers=[]).read_text("utf-8"))
    params["figures"] = {"f": {"title": "F", "rows": [["mine"]], "measure": "reconstruction"}}
    path = tmp_path / "params.yaml"
    for style, init in (("glass", "noise"), ("glass", "coffee")):
        params["experiments"]["mine"] |= {"style": style, "init": init}
        path.write_text(yaml.safe_dump(params), encoding="utf-8")
        read_params(path)
    for styles in (["glass", "dots"], {"image": "glass", "style_mask": "dots"}):
        params["experiments"]["mine"] |= {"style": styles}
        path.write_text(yaml.safe_dump(params), encoding="utf-8")
        with pytest.raises(UserError, match="reconstruction needs experiments with one picture"):
            read_params(path)


ROLES = {
    "style": [
        "painting",
        {"image": "night", "content_mask": "texture", "weight": 2.0},
        {"image": "warm", "style_mask": {"image": "abstract", "label": "#00ff00"}},
    ],
    "init": "photograph",
}
PLAYED = {
    "content": "chelsea",
    "style_1": "brushwork",
    "style_2": "hubble",
    "style_3": "coffee",
    "style_2_content_mask": "gravel",
    "style_3_mask": "glass",
    "init": "chelsea",
}


def test_roles_stand_for_their_pictures_in_styles_masks_and_starts(tmp_path: Path) -> None:
    path = with_controls(tmp_path, content="photograph", **ROLES)
    before = read_params(path)
    assert before.experiments["mine"].images == PLAYED
    single = {**ROLES, "style": {"image": "night", "content_mask": {"image": "texture"}}}
    roles = read_params(with_controls(tmp_path, **single)).experiments["mine"].images
    assert (roles["style"], roles["style_content_mask"]) == ("hubble", "gravel")
    # DVC writes the whole file in its own way.
    path = with_controls(tmp_path, content="photograph", **ROLES)
    apply_overrides(path, ["defaults.seed=3", "cast.night=dots"])
    changed = read_params(path).experiments["mine"]
    assert changed.images == PLAYED | {"style_2": "dots"}
    apply_overrides(path, ["defaults.seed=0", "cast.night=hubble"])
    assert read_params(path).experiments == before.experiments
    apply_overrides(path, ["experiments.mine.style.1.weight=5", "experiments.mine.init=warm"])
    after = read_params(path).experiments["mine"]
    assert [style.weight for style in after.style] == [1.0, 5.0, 1.0]
    assert after.images == PLAYED | {"init": "coffee"}


@pytest.fixture
def inputs_of(prepared: Path, weights_file: Path) -> Callable[..., Any]:
    """Reads the inputs of an experiment with a mask, an array of (H, W) or (H, W, 3) bytes."""

    def read(mask: Any, layers: list[str] | None = None, **settings: Any) -> Any:
        Image.fromarray(np.asarray(mask, np.uint8)).convert("RGB").save(paths.picture("mask"))
        params: Any = tiny_params(weights_file)
        params["images"]["mask"] = {"source": "mask.png"}
        style = {"image": "gravel", **settings}
        params["defaults"]["style_layers"] = layers or ["conv1_1"]
        params["experiments"] = {"first": {"content": "chelsea", "style": style}}
        params["figures"] = {}
        write_params(prepared, params)
        return read_inputs(read_params().experiments["first"])

    return read


def blank() -> Any:
    """Returns a black mask of the size of chelsea."""
    return np.zeros((300, 451), np.uint8)


def test_mask_of_another_size_than_its_picture_is_refused(inputs_of: Callable[..., Any]) -> None:
    for key, picture, size in (
        ("content_mask", "chelsea", "451x300"),
        ("style_mask", "gravel", "512x512"),
    ):
        with pytest.raises(
            UserError,
            match=rf"the mask mask has 20x10 pixels, and {picture}, which it is for, {size}. Give",
        ):
            inputs_of(np.ones((10, 20)), **{key: "mask"})


def test_black_mask_is_refused(inputs_of: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"mask.png is black, so no pixel is inside. Paint the reg"):
        inputs_of(blank(), content_mask="mask")


def test_label_that_no_pixel_has_is_refused(inputs_of: Callable[..., Any]) -> None:
    mask = np.zeros((300, 451, 3))
    mask[:, 100:] = (255, 0, 128)
    message = (
        r"mask.png has no pixel of the label #ff0081. Give a colour that it has; its most frequent "
        r"are #ff0080, #000000$"
    )
    with pytest.raises(UserError, match=message):
        inputs_of(mask, content_mask={"image": "mask", "label": "#ff0081"})
    inputs = inputs_of(mask, content_mask={"image": "mask", "label": "#FF0080"})
    inside = inputs.images["style_content_mask"]
    assert inside.shape == (1, 1, 21, 32)
    assert inside[..., :6].max() == 0
    assert inside[..., 9:].min() > 1 - 1e-6


def test_mask_that_vanishes_at_a_deep_layer_is_refused_where_the_layer_is_used(
    inputs_of: Callable[..., Any],
) -> None:
    mask = blank()
    mask[-5:, 50:90] = 255  # the last row of 21, which two poolings drop
    layers = ["conv1_1", "conv3_1"]
    message = re.escape(
        "the mask mask has nothing inside at conv3_1, after the poolings. Make the region or the "
        "image larger, or leave the layer out"
    )
    with pytest.raises(UserError, match=message):
        inputs_of(mask, layers, content_mask="mask")
    assert inputs_of(mask, ["conv1_1"], content_mask="mask").images["style_content_mask"].any()
