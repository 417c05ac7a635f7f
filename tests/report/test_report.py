"""The report is complete, escaped, self-contained, and has the same bytes for the same results."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from finished_runs import (
    MARKUP,
    edit_json,
    experiments_with_markup,
    finished,
    plan_experiments,
    write_results,
)
from markdown_it import MarkdownIt
from markupsafe import escape
from PIL import Image
from test_tracking import Server, inspected, of_kind, server

from pipeline import paths
from pipeline.config.params import read_params
from pipeline.config.plan import read_plan
from pipeline.errors import UserError
from pipeline.experiments.results import set_others_aside
from pipeline.experiments.run import run_experiment
from pipeline.imaging.output.result_files import write_result
from pipeline.imaging.output.timelapse import write_timelapse
from pipeline.imaging.picture_files import read_picture
from pipeline.records.locks import sole_run
from pipeline.records.offline_runs import upload
from pipeline.records.status import record_failure
from pipeline.report import build
from pipeline.report.experiment_table import TABLE
from pipeline.report.pages import markdown
from pipeline.stages.fetch import fetch
from pipeline.stages.report import report

__all__ = ["finished", "server"]


class Page(HTMLParser):
    """Collects what a page refers to, and the images without a description."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.references: list[str] = []
        self.undescribed: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.references += [given[key] or "" for key in ("src", "href") if key in given]
        if tag == "img" and not given.get("alt"):
            self.undescribed.append(given["src"] or "")


@pytest.fixture
def results(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished workspace to work in."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pages(results: Path) -> dict[str, Page]:
    """{name of a page: its content} of the whole report."""
    report()
    return {
        str(path.relative_to("reports")): Page(path) for path in Path("reports").rglob("*.html")
    }


def text(page: str) -> str:
    return (Path("reports") / page).read_text("utf-8")


def contents() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path("reports").rglob("*") if path.is_file()}


def test_every_experiment_has_its_page_and_its_place_in_a_figure(pages: dict[str, Page]) -> None:
    experiments = {"experiments/first.html", "experiments/second.html"}
    assert set(pages) == {"index.html", "compare.html", *experiments}
    for name in ("first", "second"):
        page = f"experiments/{name}.html"
        assert f"media/experiments/{name}/image.png" in pages["index.html"].references
        assert page in pages["index.html"].references
        assert f"../media/experiments/{name}/00004.jpg" in pages[page].references
        for content in ("content_weight", "saved_total", "sha256"):
            assert content in text(page)
        assert name in text("summary.md")
    assert "content_weight" in text("index.html")  # in which the two differ
    assert "media/figures/both.svg" in pages["index.html"].references
    assert read_picture(Path("reports/sheets/both.png")).width > 300


def test_grid_is_a_figure_whose_rows_and_columns_are_its_axes(results: Path) -> None:
    params = experiments_with_markup()
    axes = {"content_weight": [0.5, 2], "style": ["gravel", "coffee"]}
    params["grids"] = {"g": {"base": "first", "over": axes, "title": "Ratios", "caption": "Why."}}
    plan_experiments(params)
    cells = [f"g-{weight}-{style}" for weight in ("0.5", "2") for style in ("gravel", "coffee")]
    for cell in cells:
        write_results(cell)
    report()
    figure = text("index.html").partition('id="figure-g"')[2].partition("</section>")[0]
    assert "Ratios</h2>" in figure
    assert "Why." in figure
    titles = re.findall(r'<th scope="(\w+)">([^<]+)</th>', figure)
    assert titles == [
        ("col", "style gravel"),
        ("col", "style coffee"),
        ("row", "content_weight 0.5"),
        ("row", "content_weight 2"),
    ]
    assert re.findall(r'<a href="experiments/([^"]+)\.html"><img', figure) == cells
    assert all((paths.REPORTS / f"experiments/{cell}.html").is_file() for cell in cells)
    assert read_picture(Path("reports/sheets/g.png")).width > 300
    assert 'id="figure-both"' in text("index.html").partition('id="figure-g"')[2]


def test_losses_are_those_of_the_history_whatever_their_names(pages: dict[str, Page]) -> None:
    assert "| total | content | style |\n" in text("summary.md")  # edges is 0 everywhere
    assert "| first | content chelsea, content_weight 1, init noise | 4 | 3 | 1 |" in text(
        "summary.md"
    )
    curves = re.findall(r">([a-z_0-9]+)</text>", text("media/experiments/first/losses.svg"))
    assert set(curves) >= {"total", "content", "style", "content_conv2_2", "style_conv1_1"}
    assert "edges" not in curves
    assert "total, content, style, edges" in text("experiments/first.html")  # the description


def test_time_lapse_is_shown_where_there_is_one(results: Path) -> None:
    run = paths.EXPERIMENTS / "first"
    write_timelapse([run / "intermediates/00001.png", run / "image.png"], run / paths.TIMELAPSE)
    report()
    reference = "media/experiments/first/timelapse.webp"
    assert Page(Path("reports/experiments/first.html")).references.count(f"../{reference}") == 1
    assert (Path("reports") / reference).read_bytes() == (run / paths.TIMELAPSE).read_bytes()
    assert "timelapse.webp" not in text("experiments/second.html")


def test_transparent_result_of_sixteen_bits_is_shown(results: Path) -> None:
    image, alpha = torch.rand(1, 3, 24, 32), torch.zeros(1, 1, 24, 32)
    path = paths.EXPERIMENTS / "first/image.png"
    write_result(image, path, bits=16, alpha=alpha, text={})
    report()
    shown = Path("reports/media/experiments/first/image.png")
    assert shown.read_bytes() == path.read_bytes()
    assert 'image.png" width="32" height="24"' in text("experiments/first.html")
    assert read_picture(Path("reports/sheets/both.png")).getpixel((20, 60)) == (255, 255, 255)


def test_large_result_is_reduced_and_shown_in_parts(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600_000)  # a limit for input pictures
    image = torch.rand((1, 3, 700, 2100), generator=torch.Generator().manual_seed(0))
    write_result(image.round(), paths.EXPERIMENTS / "first/image.png", text={})
    report()
    page = text("experiments/first.html")
    assert 'reduced.jpg" width="2048" height="683"' in page
    assert 'image.png"' not in page
    media = Path("reports/media/experiments/first")
    assert not (media / "image.png").exists()
    files = sorted(Page(Path("reports/experiments/first.html")).references)
    parts = [file for file in files if "/parts/" in file]
    sizes = [read_picture(Path("reports/experiments") / part).size for part in parts]
    widths, heights = [512] * 4 + [52], [512, 188]
    assert sizes == [(width, height) for height in heights for width in widths]


def test_pages_need_nothing_outside_their_folder(pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        for reference in page.references:
            path, _, place = reference.partition("#")
            target = Path("reports") / Path(name).parent / path if path else Path("reports") / name
            assert reference == "data:," or target.is_file(), reference
            if place and not place.startswith("a="):
                assert f'id="{place}"' in target.read_text("utf-8")
    for file in Path("reports").rglob("*.*"):
        if file.suffix in (".css", ".svg", ".js"):
            assert not re.search(r"url\((?!#)|@import|href=\"(?!#)", file.read_text("utf-8")), file


def test_names_and_credits_are_escaped_and_images_described(pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        assert text(name).count('<meta http-equiv="Content-Security-Policy"') == 1
        assert MARKUP not in text(name)
        assert page.undescribed == []
    assert "&lt;script&gt;" in text("index.html")
    assert "&lt;script&gt;" in text("experiments/second.html")


@pytest.mark.parametrize(
    "title",
    [
        "](https://evil.example/t.png) ![y",
        "![x](https://evil.example/t.png)",
        "[x](javascript:alert(1)) [y][z] [^1]",
        "`code` ``more` \\`",
        "<img src=x onerror=alert(1)> <!-- x",
        "*a* _b_ **c** ~~d~~ a_b_c $e$",
        "a | b \\| c \\",
        "# heading # ##",
        "https://evil.example/x ftp://evil.example",
        "WWW.evil.example and evil.example",
        "<https://evil.example> me@evil.example @me",
        "&lt;b&gt; &amp; &#x41;",
        "first\n\n## second\n| a |\n|---|\n    code",
        "- item + 1. x > y === ---",
    ],
)
def test_summary_shows_every_title_as_it_is(title: str, results: Path) -> None:
    params = experiments_with_markup()
    params["figures"]["both"]["title"] = title
    plan_experiments(params)
    (paths.EXPERIMENTS / "second/image.png").unlink()
    record_failure("second", title)
    report()
    rendered = MarkdownIt("gfm-like", {"linkify": False}).render(text("summary.md"))
    shown = re.search(r"<h2>(.*?)</h2>\n<p><img src=\"sheets/both.png\" alt=\"(.*?)\"", rendered)
    assert shown is not None, rendered
    for each in shown.groups():
        assert unescape(each).replace("\u2060", "") == " ".join(title.split())
    elements = {"h1", "h2", "p", "img", "table", "thead", "tbody", "tr", "th", "td"}
    assert set(re.findall(r"<(\w+)", rendered)) <= elements
    assert re.findall(r"<img src=\"([^\"]*)", rendered) == ["sheets/both.png"]
    assert not re.search(
        r"\w://|www\.", text("summary.md"), re.IGNORECASE
    )  # of which viewers make links


def test_commands_can_be_copied_from_the_summary() -> None:
    assert markdown("dvc repro stylize@third") == "dvc repro stylize@third"


@pytest.mark.parametrize(
    "words",
    [
        "two\nlines",
        "a line break at the end\n",
        "\u202eright to left \u05d0\u0628",
        "e\u0301 👩‍👩‍👧 \U0010ffff",
        "W" * 200,  # the longest title that params.yaml may hold
        "many, " * 33,
        "many words " * 18,
        "100 % {{ 7 * 7 }} {% raw %} $x \\ \" '",
    ],
)
def test_every_text_is_shown(words: str, results: Path) -> None:
    params = experiments_with_markup()
    params["figures"]["both"] |= {"title": words, "caption": words}
    params["figures"]["both"] |= {"row_titles": [words], "column_titles": [words, ""]}
    params["images"]["coffee"] |= {"credit": words, "licence": words, "source": words}
    plan_experiments(params)
    report()
    assert " ".join(escape(words).split()) in " ".join(text("index.html").split())
    assert 300 < read_picture(Path("reports/sheets/both.png")).width < 1000


def test_figure_whose_experiments_differ_in_a_list_of_hundreds_is_shown(results: Path) -> None:
    params = experiments_with_markup()
    params["experiments"]["first"]["intermediates"] = list(range(1, 501))
    plan_experiments(params)
    report()
    assert "499, 500" in text("index.html")


def test_settings_that_differ_from_the_defaults_are_marked(pages: dict[str, Page]) -> None:
    changed = re.findall(r'class="changed"><th scope="row">(\w+)', text("experiments/second.html"))
    assert set(changed) == {"content", "style", "init"}


def test_report_has_the_same_bytes_twice(pages: dict[str, Page]) -> None:
    before = contents()
    report()
    assert contents() == before
    assert len(before) > 15


def test_experiments_run_again_give_the_same_report(prepared: Path) -> None:
    """Their W&B runs have other names, which are of no use in a clone either."""

    def run_and_report() -> dict[Path, bytes]:
        for name in ("first", "second"):
            run_experiment(read_plan(name), read_params().run_options(name))
        report()
        return contents()

    before = run_and_report()
    assert len(list(prepared.glob("wandb/offline-run-*"))) == 3
    assert run_and_report() == before


@pytest.mark.parametrize("step", ["add_pictures", "write_pages"])
def test_report_that_fails_leaves_the_earlier_one(step: str, pages: dict[str, Page]) -> None:
    done = getattr(build, step)

    def fail(*arguments: Any) -> None:
        done(*arguments)
        raise UserError("the disk is full")

    before = contents()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, step, fail)
        with pytest.raises(UserError, match="the disk is full"):
            report()
    assert contents() == before


def test_missing_input_picture_is_an_error_and_the_earlier_report_stays(
    pages: dict[str, Page],
) -> None:
    before = contents()
    paths.picture("gravel").unlink()
    with pytest.raises(UserError, match=r"gravel\.png, an input picture of first, is missing"):
        report()
    assert contents() == before


def test_removed_experiment_leaves_the_report_and_keeps_its_results(
    pages: dict[str, Page],
) -> None:
    picture = (paths.EXPERIMENTS / "second/image.png").read_bytes()
    params = experiments_with_markup()
    del params["experiments"]["second"]
    params["figures"] = {}
    plan_experiments(params)
    report()
    assert "second" not in text("index.html")
    assert "Other experiments" in text("index.html")
    assert not Path("reports/media/experiments/second").exists()
    assert not Path("reports/experiments/second.html").exists()
    assert [folder.name for folder in paths.EXPERIMENTS.iterdir()] == ["first"]
    assert (paths.REMOVED / "second/image.png").read_bytes() == picture


def test_results_of_a_removed_experiment_that_still_runs_are_left_alone(results: Path) -> None:
    with sole_run("second"):
        set_others_aside(["first"])
    assert (paths.EXPERIMENTS / "second/image.png").is_file()
    for _ in range(2):  # the second time in place of the first
        (paths.EXPERIMENTS / "second").mkdir(exist_ok=True)
        set_others_aside(["first"])
        assert not (paths.EXPERIMENTS / "second").exists()


def test_experiment_that_failed_is_shown_with_its_reason(results: Path) -> None:
    (paths.EXPERIMENTS / "second/image.png").unlink()
    record_failure("second", "loss is nan: </script><b>lower</b> | lr")
    report()
    for page in ("index.html", "experiments/second.html"):
        assert "No result." in text(page)
        assert "The latest run failed: loss is nan: &lt;/script&gt;&lt;b&gt;lower" in text(page)
    assert "lower&lt;/b&gt; \\| lr" in text("summary.md")
    assert "<b>lower" not in text("compare.html")
    assert "media/experiments/first/image.png" in text("index.html")


def test_run_that_ended_early_is_shown_with_its_reason(results: Path) -> None:
    changes = {"kind": "divergence", "reason": "total is nan <b>", "notes": ["Diverged | once"]}
    edit_json(paths.EXPERIMENTS / "first/status.json", **changes)
    report()
    for page in ("index.html", "experiments/first.html"):
        assert text(page).count("Diverged | once.") == 1
        assert text(page).count("Ended by divergence: total is nan &lt;b&gt;.") == 1
        assert "media/experiments/first/image.png" in text(page)
    assert "first: Diverged \\| once. Ended by divergence: total is nan &lt;b&gt;." in text(
        "summary.md"
    )
    assert "Ended by" not in text("experiments/second.html")


def test_picture_that_cannot_be_fetched_is_the_reason(results: Path) -> None:
    params = experiments_with_markup()
    params["images"]["lost"] = {"source": "data/own/lost.png"}
    params["experiments"]["third"] = {"content": "chelsea", "style": "lost"}
    plan_experiments(params)
    with pytest.raises(UserError):
        fetch(read_params())
    report()
    reason = "The latest run failed: image &#39;lost&#39; from data/own/lost.png"
    assert reason in text("index.html")


def test_interrupted_run_leaves_no_earlier_result(results: Path) -> None:
    paths.WEIGHTS_FILE.unlink()
    with pytest.raises(UserError):
        run_experiment(read_plan("first"), read_params().run_options("first"))
    report()
    assert "The latest run failed" in text("experiments/first.html")


def test_report_without_any_result_says_so(results: Path) -> None:
    shutil.rmtree(paths.EXPERIMENTS)
    report()
    assert text("index.html").count("It has not been run yet.") == 2
    assert "first: no result. It has not been run yet." in text("summary.md")


def test_experiment_that_never_ran_is_shown_with_what_to_do(results: Path) -> None:
    params = experiments_with_markup()
    params["experiments"]["third"] = {"content": "chelsea", "style": "gravel"}
    plan_experiments(params)
    report()
    for page in ("index.html", "experiments/third.html"):
        assert "It has not been run yet. To compute it: dvc repro stylize@third" in text(page)


def test_results_of_another_plan_are_not_shown_under_this(results: Path) -> None:
    params = experiments_with_markup()
    params["experiments"]["first"]["content_weight"] = 9.0
    plan_experiments(params)
    report()
    assert "Its results were made with other settings, pictures, code or weights" in text(
        "index.html"
    )
    assert "media/experiments/first/image.png" not in text("index.html")


def test_wandb_gets_the_pictures_of_all_experiments(
    results: Path, server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They arrive from any place that the folder is moved to, with nothing else of this machine."""
    (results / "home").mkdir()
    monkeypatch.setenv("HOME", str(results / "home"))
    plan_experiments(experiments_with_markup() | {"tracking": {"mode": "offline"}})
    report()
    wandb.teardown()
    assert list((results / "home").iterdir()) == []
    logged = of_kind(inspected(results), "history")["item"]
    caption = "first, content chelsea, style gravel, content_weight 1, total loss 4"
    assert logged["both/first.caption"] == caption
    pictures = {key.removesuffix(".path") for key in logged if key.endswith(".path")}
    inputs = {f"input pictures/{name}" for name in ("chelsea", "coffee", "gravel")}
    assert pictures == {"both/first", "both/second"} | inputs
    moved = results / "moved"
    (results / "wandb").rename(moved)
    upload(moved)
    uploaded = [body for name, body in Server.uploads.items() if not name.startswith("artifacts/")]
    shown = ["experiments/first/image.png", "experiments/second/image.png"]
    shown += [f"pictures/{name}.jpg" for name in ("chelsea", "coffee", "gravel")]
    assert {(paths.REPORTS / "media" / name).read_bytes() for name in shown} <= set(uploaded)
    of_table = [body for name, body in Server.uploads.items() if name.startswith("artifacts/")]
    results_shown = {(paths.REPORTS / "media" / name).read_bytes() for name in shown[:2]}
    assert results_shown <= set(of_table)
    summary = json.loads(Server.uploads["wandb-summary.json"])
    assert summary[TABLE]["nrows"] == 2
    assert summary[TABLE]["artifact_path"]


@pytest.mark.parametrize("fault", ["", "dies in the middle"])
def test_table_is_logged_online_while_the_server_answers(
    fault: str, results: Path, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = {"mode": "online", "init_timeout": 2, "finish_timeout": 2}
    plan_experiments(experiments_with_markup() | {"tracking": tracking})
    monkeypatch.setattr(Server, "fault", fault)
    report()
    wandb.teardown()
    tables = [each for each in Server.artifacts.values() if each["artifactTypeName"] == "run_table"]
    assert [each.get("committed") for each in tables] == ([] if fault else [True])
