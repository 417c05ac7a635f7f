"""params.yaml: what is shipped is valid, and every mistake is a sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY
from dvc.utils.hydra import apply_overrides

from pipeline.config.params import read_params
from pipeline.config.schema import Params
from pipeline.errors import UserError
from pipeline.losses import make_terms

SHIPPED = REPOSITORY / "params.yaml"


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], object]], Params]:
    """Returns a function that reads the shipped parameters after a change to them."""

    def read(change: Callable[[dict[str, Any]], object]) -> Params:
        params = yaml.safe_load(SHIPPED.read_text("utf-8"))
        change(params)
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(params), encoding="utf-8")
        return read_params(path)

    return read


@pytest.mark.parametrize("file", ["params.yaml", "benchmarks/authors-notebook.yaml"])
def test_shipped_parameters_are_valid(file: str) -> None:
    assert read_params(REPOSITORY / file).experiments


def test_experiment_gets_what_it_does_not_say_from_defaults(changed: Any) -> None:
    def change(params: dict[str, Any]) -> None:
        params["defaults"] |= {"size": 123, "lbfgs": {"lr": 0.5, "history_size": 7}}
        params["experiments"] = {
            "a": {"content": "coffee", "style": "ihc", "lbfgs": {"history_size": 9}, "seed": 4}
        }
        params["figures"] = {}

    experiment = changed(change).experiments["a"]
    assert (experiment.size, experiment.seed) == (123, 4)
    assert (experiment.lbfgs.lr, experiment.lbfgs.history_size) == (0.5, 9)


@pytest.mark.parametrize(
    ("default", "change", "expected"),
    [
        ({"evaluations": 9, "gain": 0.1}, {"gain": 0.05}, (9, 0.05)),
        ({"evaluations": 9, "gain": 0.1}, {"evaluations": 7}, (7, 0.1)),
        ({"evaluations": 9}, {}, (9, 0.001)),
        ({"evaluations": 9, "gain": 0.1}, None, None),
        (None, {"gain": 0.05}, (50, 0.05)),
        (None, None, None),
    ],
)
def test_keys_of_early_stop_replace_single_ones_of_the_default(
    default: Any, change: Any, expected: Any, changed: Any
) -> None:
    def write(params: dict[str, Any]) -> None:
        params["defaults"]["early_stop"] = default
        params["experiments"]["fig3-b"]["early_stop"] = change

    stop = changed(write).experiments["fig3-b"].early_stop
    assert (stop and (stop.evaluations, stop.gain)) == expected


def test_keys_of_output_replace_single_ones_of_the_default(changed: Any) -> None:
    def write(params: dict[str, Any]) -> None:
        params["defaults"]["output"] = {"bits": 16, "dpi": 300}
        params["experiments"]["fig3-b"]["output"] = {"dpi": None, "alpha": True}

    output = changed(write).experiments["fig3-b"].output
    assert (output.bits, output.dpi, output.alpha) == (16, None, True)


@pytest.mark.parametrize("output", [{"bits": 12}, {"dpi": 0}, {"dpi": True}, {"alpha": "keep"}])
def test_output_that_no_file_has_is_a_mistake(output: dict[str, Any], changed: Any) -> None:
    with pytest.raises(UserError, match=rf"defaults.output.{next(iter(output))}: "):
        changed(lambda params: params["defaults"].update(output=output))


def test_timelapse_without_intermediates_is_a_mistake(changed: Any) -> None:
    change = {"timelapse": True, "intermediates": []}
    with pytest.raises(UserError, match="the time-lapse shows the intermediates, and there are no"):
        changed(lambda params: params["experiments"]["fig3-b"].update(change))


def test_mapping_of_layers_is_a_value_and_replaces_the_default(changed: Any) -> None:
    def write(params: dict[str, Any]) -> None:
        params["defaults"]["style_layers"] = {"conv1_1": 1.0, "conv2_1": 2.0}
        params["experiments"]["fig3-b"]["style_layers"] = {"conv2_1": 3.0}

    assert changed(write).experiments["fig3-b"].style_layers == {"conv2_1": 3.0}


def test_listed_layers_share_a_weight_of_one_in_the_networks_order(changed: Any) -> None:
    params = changed(lambda p: p["defaults"].update(style_layers=["conv4_1", "conv1_1"]))
    assert params.defaults.style_layers == {"conv1_1": 0.5, "conv4_1": 0.5}
    assert list(params.defaults.style_layers) == ["conv1_1", "conv4_1"]


def test_scientific_notation_is_a_number_as_dvc_reads_it(changed: Any) -> None:
    params = changed(lambda p: p["experiments"]["fig3-b"].update(content_weight="1e-3"))
    assert params.experiments["fig3-b"].content_weight == 1e-3


CAT = "experiments.fig3-b"
MISTAKES: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    (
        "unknown key of an experiment",
        lambda p: p["experiments"]["fig3-b"].update(contnet_weight=1),
        f"{CAT}.contnet_weight: unknown key. Did you mean 'content_weight'?",
    ),
    (
        "truth value for a number",
        lambda p: p["defaults"].update(evaluations=True),
        "defaults.evaluations: True: YAML reads it as a truth value. Write a number",
    ),
    (
        "truth value for a number that may be left out",
        lambda p: p["defaults"].update(size=True),
        "defaults.size: True: YAML reads it as a truth value. Write a number",
    ),
    (
        "layer that is no list",
        lambda p: p["defaults"].update(content_layers="conv4_2"),
        "defaults.content_layers: 'conv4_2': a list is needed. Write [conv4_2]",
    ),
    (
        "word for a truth value",
        lambda p: p["defaults"].update(deterministic="off"),
        "defaults.deterministic: 'off': Write true or false, without quotes",
    ),
    (
        "unknown key of defaults",
        lambda p: p["defaults"].update(evaluation=3),
        "defaults.evaluation: unknown key. Did you mean 'evaluations'?",
    ),
    (
        "unknown key of a section inside",
        lambda p: p["defaults"]["lbfgs"].update(history=3),
        "defaults.lbfgs.history: unknown key. Did you mean 'history_size'?",
    ),
    (
        "unknown key of another section inside",
        lambda p: p["experiments"]["fig3-b"].update(early_stop={"evaluations": 9, "gian": 0.1}),
        f"{CAT}.early_stop.gian: unknown key. Did you mean 'gain'?",
    ),
    (
        "name that is a number",
        lambda p: p["experiments"].update({2024: p["experiments"]["fig3-b"]}),
        "experiments.2024: 2024: YAML reads it as a number or a truth value. Put the name in",
    ),
    (
        "name that is a truth value",
        lambda p: p["experiments"].update({False: p["experiments"]["fig3-b"]}),
        "experiments.0: False: YAML reads it as a number or a truth value.",
    ),
    (
        "name that is a number to DVC",
        lambda p: p["experiments"].update({"1e5": p["experiments"]["fig3-b"]}),
        "experiments.100000.0: 100000.0: YAML reads it as a number or a truth value. Put the name",
    ),
    (
        "unknown section",
        lambda p: p.update(experiment={}),
        "experiment: unknown key. Did you mean 'experiments'?",
    ),
    (
        "unknown key of the backbone",
        lambda p: p["backbone"].update(poling="avg"),
        "backbone.poling: unknown key. Did you mean 'pooling'?",
    ),
    (
        "negative weight",
        lambda p: p["defaults"].update(style_weight=-1),
        "defaults.style_weight: -1: Input should be greater than or equal to 0",
    ),
    (
        "unknown choice",
        lambda p: p["backbone"].update(pooling="mean"),
        "backbone.pooling: 'mean': Input should be 'avg' or 'max'",
    ),
    (
        "unknown convention",
        lambda p: p["defaults"].update(convention="sum"),
        "defaults.convention: 'sum': Input should be 'mean' or 'paper'",
    ),
    (
        "missing key",
        lambda p: p["experiments"]["fig3-b"].pop("content"),
        f"{CAT}.content: is missing. Add it",
    ),
    ("missing section", lambda p: p.pop("images"), "images: is missing. Add it"),
    (
        "bad hash",
        lambda p: p["images"]["coffee"].update(hash="sha256:12"),
        "images.coffee.hash: 'sha256:12': String should match",
    ),
    (
        "nothing to do",
        lambda p: p["experiments"]["fig3-b"].update(content_weight=0, style_weight=0),
        f"{CAT}: nothing to optimise",
    ),
    (
        "layer twice",
        lambda p: p["defaults"].update(content_layers=["conv4_2", "conv4_2"]),
        "a layer stands twice",
    ),
    (
        "list of mappings",
        lambda p: p["defaults"].update(content_layers=[{"conv4_2": 1}]),
        "defaults.content_layers: [{'conv4_2': 1}]: a mapping of keys to values is needed",
    ),
    (
        "caffe without a file",
        lambda p: p["backbone"].update(convention="caffe"),
        "backbone: convention caffe is for a file",
    ),
    (
        "antialiasing that a filter has not",
        lambda p: p["defaults"].update(resampling="pillow-2.6"),
        "resampling pillow-2.6 does not antialias. Set antialias: false",
    ),
    ("no experiments", lambda p: p.update(experiments={}), "experiments: Dictionary should have"),
    (
        "infinite weight",
        lambda p: p["defaults"].update(content_weight=float("inf")),
        "defaults.content_weight: inf: Input should be a finite number",
    ),
]


@pytest.mark.parametrize(
    ("change", "message"), [case[1:] for case in MISTAKES], ids=[case[0] for case in MISTAKES]
)
def test_mistake_is_named(change: Any, message: str, changed: Any) -> None:
    with pytest.raises(UserError) as raised:
        changed(change)
    assert message in str(raised.value)


def test_mistake_in_defaults_is_said_once(changed: Any) -> None:
    with pytest.raises(UserError, match="has 1 mistake") as raised:
        changed(lambda p: p["defaults"].update(size=3))
    assert str(raised.value).count("size") == 1


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"architecture": "vgg19"}, "weights embedded are those of vgg19-small. Set architecture"),
        ({"weights": "imagenet"}, "weights imagenet are those of vgg19. Set architecture: vgg19"),
        ({"convention": "caffe"}, "convention caffe is for a file of VGG-19. Remove it"),
    ],
)
def test_network_and_weights_that_do_not_fit_are_named(
    backbone: dict[str, str], message: str, changed: Any
) -> None:
    with pytest.raises(UserError, match=message):
        changed(lambda params: params["backbone"].update(backbone))


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("vgg19-small", "backbone.architecture"), ("vgg19", "its warm start")],
)
def test_layer_that_the_network_lacks_is_named_with_its_experiment(
    architecture: str, reason: str, changed: Any
) -> None:
    def change(params: dict[str, Any]) -> None:
        weights = {"vgg19": "imagenet", "vgg19-small": "embedded"}[architecture]
        params["backbone"].update(architecture=architecture, weights=weights)
        warm_start = "embedded" if reason == "its warm start" else None
        params["experiments"]["fig3-b"].update(style_layers=["conv3_4"], warm_start=warm_start)

    with pytest.raises(
        UserError,
        match=rf"experiments.fig3-b.style_layers, for {reason} vgg19-small: this network "
        "has no layer conv3_4. The layers are conv1_1, conv1_2, conv2_1",
    ):
        changed(change)


def test_warm_start_on_the_network_itself_is_refused(changed: Any) -> None:
    with pytest.raises(UserError, match="warm_start: the whole run is on the embedded network"):
        changed(lambda params: params["defaults"].update(warm_start="embedded"))


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ({"rows": [["a", "b"]]}, "rows: no experiment 'b'. .*The experiments are a, aa"),
        ({"rows": [["aaa"]]}, "no experiment 'aaa'. Did you mean 'aa'"),
        ({"rows": []}, "figures.f.rows: .*at least 1 item"),
        ({"rows": [[]]}, "figures.f.rows.0: .*at least 1 item"),
        ({"rows": [["a"]], "row_titles": ["x", "y"]}, "row_titles has 2 titles for 1"),
        (
            {"rows": [["a", "aa"], ["a"]], "column_titles": ["x"]},
            "column_titles has 1 titles for 2",
        ),
        ({"rows": [["a"]], "mesure": "starts"}, "unknown key. Did you mean 'measure'"),
        (
            {"rows": [["a"]], "measure": "weight"},
            "'reconstruction', 'trade-off', 'starts' or 'distances'",
        ),
        ({"rows": [["a"]], "measure": "reconstruction"}, "reconstruction needs .* one loss"),
        ({"rows": [["from"]], "measure": "reconstruction"}, "none of which starts from it"),
        ({"rows": [["only"]], "measure": "trade-off"}, "trade-off needs .* both losses"),
        ({"rows": [["a", "large"]], "measure": "starts"}, "starts needs .* one size"),
    ],
)
def test_mistakes_in_a_figure_are_named(figure: dict[str, Any], message: str, changed: Any) -> None:
    def change(params: dict[str, Any]) -> None:
        pictures = {"content": "coffee", "style": "ihc"}
        only = {**pictures, "style_layers": []}
        params["experiments"] = {"a": pictures, "aa": pictures, "only": only}
        params["experiments"] |= {"from": {**only, "init": "content"}}
        params["experiments"] |= {"large": {**pictures, "size": 999}}
        params["figures"] = {"f": {"title": "F", **figure}}

    with pytest.raises(UserError, match=message):
        changed(change)


def test_part_of_the_cast_without_a_picture_is_named(changed: Any) -> None:
    with pytest.raises(UserError, match=r"cast\.painting: no image 'brushwrk'"):
        changed(lambda params: params["cast"].update(painting="brushwrk"))


def test_role_stands_for_the_picture_that_plays_it(changed: Any) -> None:
    def change(params: dict[str, Any]) -> None:
        params["experiments"]["mine"] = {"content": "night", "style": "coffee"}
        params["cast"]["night"] = "dots"

    experiments = changed(change).experiments
    assert experiments["mine"].images == {"content": "dots", "style": "coffee"}
    assert experiments["fig7-photograph"].images == {"content": "rocket", "style": "dots"}


def test_experiment_with_a_role_is_the_one_with_its_picture(changed: Any) -> None:
    named = changed(lambda p: p["experiments"]["fig3-b"].update(content="chelsea"))
    assert named.experiments == read_params(SHIPPED).experiments


def test_rule_for_a_figure_looks_at_the_pictures_of_the_roles(changed: Any) -> None:
    def change(params: dict[str, Any]) -> None:
        params["cast"]["other"] = "chelsea"
        params["experiments"]["fig6-style"]["content"] = "other"

    assert changed(change).experiments["fig6-style"].content == "chelsea"
    with pytest.raises(UserError, match=r"starts needs .* one content image"):
        changed(lambda params: params["experiments"]["fig6-style"].update(content="night"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: p["experiments"]["fig3-b"].update(content="photograf"),
            r"content: no image 'photograf' in the catalogue. Did you mean 'photograph'\? "
            "The images are astronaut, .*; the roles are abstract, ",
        ),
        (
            lambda p: p["experiments"]["fig3-b"].update(style="coffe"),
            r"style: no image 'coffe' in the catalogue. Did you mean 'coffee'\?",
        ),
        (lambda p: p["cast"].update(coffee="glass"), r"cast.coffee: an image has that name too"),
        (lambda p: p["cast"].update(coffee="coffee"), r"cast.coffee: an image has that name too"),
        (lambda p: p["cast"].update(night="photograph"), r"cast.night: no image 'photograph'"),
        (
            lambda p: p["cast"].update(night=["coffee"]),
            r"cast.night: \['coffee'\]: Input should be",
        ),
        (lambda p: p["cast"].update({"1": "coffee", 2: "ihc"}), r"cast.2: 2: YAML reads it as a n"),
        (
            lambda p: p.update(cast=["coffee"]),
            r"cast: \['coffee'\]: a mapping of keys to values is",
        ),
        (lambda p: p.pop("cast"), r"cast: is missing. Add it"),
        (lambda p: p.pop("figures"), r"figures: is missing. Add it"),
    ],
)
def test_mistake_in_a_role_is_named(change: Any, message: str, changed: Any) -> None:
    with pytest.raises(UserError, match=message):
        changed(change)


def test_picture_of_the_cast_that_is_unknown_is_said_once(changed: Any) -> None:
    with pytest.raises(UserError, match=r"has 1 mistake.*\n  cast\.photograph: no image 'cofee'"):
        changed(lambda params: params["cast"].update(photograph="cofee"))


WORDS = ["on", "yes", "No", "y", "null", "true", "~", "1:30", "0777", "08", "1e5", "1_0e10", "0x1F"]
WORDS += [
    "0o17",
    "2024",
    "2001-01-01",
    "=",
    "<<",
    ".5",
    "1_000",
    "NaN",
    ".inf",
    "#a",
    "a: b",
    "- a",
]
WORDS += [
    "*a",
    "&a",
    "!a",
    "'a'",
    '"a"',
    "[a]",
    "{a: b}",
    "?",
    "@a",
    "%a",
    "a  b",
    "Zoë ✓ 猫",
    "👩‍🎨",
]


class Quoted(yaml.SafeDumper):
    """Writes all text in quotes, and shares nothing."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


Quoted.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


@pytest.mark.parametrize("in_braces", [False, True])
@pytest.mark.parametrize("word", WORDS)
def test_texts_and_names_are_the_same_after_dvc_wrote_the_file(
    word: str, in_braces: bool, tmp_path: Path
) -> None:
    params = yaml.safe_load(SHIPPED.read_text("utf-8"))
    params["images"]["coffee"] |= {"credit": word, "licence": word, "hash": None}
    params["tracking"] |= {"tags": [word], "group": word}
    figure = {"title": word, "caption": word, "row_titles": [word], "column_titles": [word]}
    experiment = {"content": "coffee", "style": "coffee"}
    name = word if re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]*", word) else "a"
    params["cast"] = {f"{name}-role": name}
    params["experiments"] = {name: experiment, "b": {"content": f"{name}-role", "style": name}}
    params["figures"] = {name: {**figure, "rows": [[name]]}}
    path = tmp_path / "params.yaml"
    params["images"] = {
        key: {**params["images"]["coffee"], "source": "a"} for key in ("coffee", name)
    }
    params["backbone"]["calibration"] = ["a"]
    text = yaml.dump(params, Dumper=Quoted, default_flow_style=in_braces, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    if in_braces and ":" in word:
        with pytest.raises(UserError, match=r"has a colon inside \{ \}"):
            read_params(path)
        return
    before = read_params(path)
    assert before.figures[name].title == before.images["coffee"].credit == word
    apply_overrides(path, ["defaults.seed=3", "cast={}", "experiments.b.content=coffee"])
    apply_overrides(path, ["defaults.seed=0", f"+cast.role={json.dumps(name)}"])
    apply_overrides(path, ["experiments.b.content=role"])
    after = read_params(path)
    assert after.experiments == before.experiments
    assert (after.images, after.figures, after.tracking) == (
        before.images,
        before.figures,
        before.tracking,
    )


@pytest.mark.parametrize(
    ("changes", "terms", "roles"),
    [
        ({}, ("content", "style", "out_of_range"), ("content", "style")),
        ({"content_layers": [], "range_weight": 0}, ("style",), ("style",)),
        ({"style_weight": 0}, ("content", "out_of_range"), ("content",)),
        (
            {"style_weight": 0, "content_layers": [], "variation_weight": 1},
            ("variation", "out_of_range"),
            (),
        ),
    ],
)
def test_loss_of_an_experiment_has_the_terms_with_a_weight(
    changes: dict[str, Any], terms: tuple[str, ...], roles: tuple[str, ...], changed: Any
) -> None:
    params = changed(lambda params: params["experiments"]["fig3-b"].update(changes))
    experiment = params.experiments["fig3-b"]
    active = tuple(term.name for term in make_terms(experiment.model_dump()) if term.active)
    assert (active, experiment.image_roles) == (terms, roles)


def test_figure_of_an_experiment_is_the_first_that_shows_it(changed: Any) -> None:
    params = changed(lambda params: None)
    for name, figure in params.figures.items():
        assert all(params.figure_of(each) in params.figures for each in figure.experiments), name
    assert params.figure_of("grid-conv1_1-1") == "grid"
    assert params.figure_of("fig4-1") == "fig4"
    assert params.figure_of("unheard") is None


def figure_of(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda params: params["figures"]["fig3"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (figure_of(title=""), "title: '': String should have at least 1 character"),
        (figure_of(title=" \n "), "title: .*String should have at least 1 character"),
        (figure_of(title="x" * 201), "title: 'x.*x': String should have at most 200 characters"),
        (figure_of(title=12), "title: 12: Input should be a valid string. Put text in quotes"),
        (figure_of(caption="x" * 500_000), "caption: 'x.*': String should have at most 2000"),
        (figure_of(column_titles=[0.1] * 5), "column_titles.0: 0.1: .* Put text in quotes"),
        (figure_of(column_titles=["x" * 201] * 5), "column_titles.0: .* at most 200 characters"),
        (figure_of(rows=[["fig3-b"] * 2000]), "rows: 2,000 cells. Make figures of up to 400"),
        (figure_of(rows=[["fig3-b"]] * 2000), "rows: 2,000 cells. Make figures of up to 400"),
        (figure_of(rows=[["fig3-b"]] * 40 + [["fig3-b"] * 40]), "rows: 1,640 cells"),
        (lambda p: p["images"]["ihc"].update(credit="x" * 2001), "credit: .* at most 2000 char"),
        (lambda p: p["images"]["ihc"].update(source="x" * 5000), "source: .* at most 4096 char"),
        (lambda p: p["images"]["ihc"].update(source="~nobody-here/a"), "source: .*no such user"),
        (lambda p: p["defaults"].update(seed=10**90), "defaults.seed: 1.*: Input should be less"),
        (lambda p: p["defaults"].update(seed="9" * 5000), "defaults.seed: .* exceeded maximum"),
        (
            lambda p: p["defaults"].update(intermediates=list(range(1, 2001))),
            "defaults.intermediates: .*List should have at most 500 items after validation, not 20",
        ),
        (lambda p: p["defaults"].update(intermediates=[10**9]), "intermediates.0: 1.* less than"),
        (lambda p: p["defaults"].update(intermediates=[1, True]), "intermediates: .* a truth val"),
        (lambda p: p["defaults"].update(style_layers={"conv1_1": True}), "style_layers: .*a truth"),
        (lambda p: p["distillation"].update(widths=[True] * 5), "widths: .*a truth value"),
        (lambda p: p["defaults"].update(content_layers=["x" * 500_000]), "unknown layer 'x"),
        (
            lambda p: p["experiments"]["fig3-b"].update(style="x" * 500_000),
            "fig3-b.style: 'x.*up to 64",
        ),
        (lambda p: p.update({"x" * 500_000: 1}), "unknown key"),
        (lambda p: p["tracking"].update(project="a/b"), "project: 'a/b': String should match"),
        (lambda p: p["tracking"].update(project=""), "project: '': String should match"),
        (lambda p: p["tracking"].update(tags=[""]), "tags.0: '': String should have at least 1"),
        (lambda p: p["tracking"].update(tags=["x" * 65]), "tags.0: .* at most 64 characters"),
        (lambda p: p["tracking"].update(tags=["x"] * 3000), "tags: .* at most 100 items"),
        (lambda p: p["tracking"].update(group="x" * 129), "group: .* at most 128 characters"),
    ],
)
def test_what_a_later_stage_could_not_take_is_refused(
    change: Any, message: str, changed: Any
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        changed(change)
    assert len(str(raised.value)) < 4000


@pytest.mark.parametrize("key", ["first_step", "largest_step", "noise_level", "content_weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), True, [], {}, "x"])
def test_number_that_is_none_is_refused(key: str, value: Any, changed: Any) -> None:
    with pytest.raises(UserError, match=rf"defaults\.{key}: "):
        changed(lambda params: params["defaults"].update({key: value}))


def test_many_starts_to_compare_are_refused(changed: Any) -> None:
    def change(params: dict[str, Any]) -> None:
        noises = {
            f"n{seed}": {"content": "ihc", "style": "ihc", "seed": seed} for seed in range(31)
        }
        params["experiments"] = noises
        params["figures"] = {"f": {"title": "F", "rows": [list(noises)], "measure": "starts"}}

    with pytest.raises(UserError, match="starts needs up to 30 experiments"):
        changed(change)


def test_end_of_a_line_in_a_text_is_a_space(changed: Any) -> None:
    def change(params: dict[str, Any]) -> None:
        params["figures"]["fig3"] |= {"title": "One \n two\n", "caption": "\na\n\nb\n"}
        params["figures"]["fig3"]["column_titles"] = ["a\nb", "c\n", "", "d", "e"]
        params["images"]["ihc"]["credit"] = "A\nB\n"

    params = changed(change)
    figure = params.figures["fig3"]
    assert (figure.title, figure.caption) == ("One two", "a b")
    assert figure.column_titles == ["a b", "c", "", "d", "e"]
    assert params.images["ihc"].credit == "A B"


@pytest.mark.parametrize("section", ["images", "experiments"])
def test_names_that_differ_only_in_case_are_refused(section: str, changed: Any) -> None:
    def change(params: dict[str, Any]) -> None:
        name = next(iter(params[section]))
        params[section][name.upper()] = params[section][name]

    with pytest.raises(UserError, match="differ only in case"):
        changed(change)
