"""The report: complete, escaped, self-contained, the same bytes twice."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import save_picture, tiny_params, write_params, write_plans_again
from test_tracking import inspected

from pipeline import paths
from pipeline.config.params import read_params
from pipeline.errors import UserError
from pipeline.imaging.picture_files import read_picture
from pipeline.networks.prepare import prepare
from pipeline.records.status import recording_failure
from pipeline.stages.fetch import fetch
from pipeline.stages.report import report
from pipeline.stages.stylize import stylize

HOSTILE = "<script>alert('credit')</script>"


class References(HTMLParser):
    """Collects what a page refers to, and the images without a description."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.undescribed: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.found += [given[key] or "" for key in ("src", "href") if key in given]
        if tag == "img" and not given.get("alt"):
            self.undescribed.append(given["src"] or "")


@pytest.fixture(scope="module")
def finished(weights_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after two experiments, one of whose pictures has a hostile credit."""
    folder = tmp_path_factory.mktemp("finished")
    params: Any = tiny_params(weights_file)
    params["images"]["coffee"]["credit"] = HOSTILE
    params["images"]["gravel"] |= {"licence": HOSTILE}
    params["figures"]["both"] |= {"caption": HOSTILE, "title": HOSTILE, "measure": "trade-off"}
    params["figures"]["both"] |= {"row_titles": [HOSTILE], "column_titles": [HOSTILE, "α/β"]}
    write_params(folder, params)
    with contextlib.chdir(folder):
        read = read_params()
        fetch(read)
        write_plans_again()
        prepare(read.backbone)
        for name in ("first", "second"):
            stylize(name)
    return folder


@pytest.fixture
def cells(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pages(cells: Path) -> dict[str, References]:
    """{page: what is in it} of the whole report."""
    report()
    return {
        str(path.relative_to("reports")): read(path) for path in Path("reports").rglob("*.html")
    }


def read(path: Path) -> References:
    page = References()
    page.feed(path.read_text("utf-8"))
    return page


def text(page: str) -> str:
    return (Path("reports") / page).read_text("utf-8")


def change(cells: Path, weights_file: Path, edit: Callable[[Any], object]) -> None:
    params: Any = tiny_params(weights_file)
    edit(params)
    write_params(cells, params)


def test_every_experiment_has_its_page_and_its_place_in_a_figure(
    pages: dict[str, References],
) -> None:
    assert set(pages) == {
        "index.html",
        "compare.html",
        "experiments/first.html",
        "experiments/second.html",
    }
    for name in ("first", "second"):
        assert f"media/experiments/{name}/image.png" in pages["index.html"].found
        assert f"experiments/{name}.html" in pages["index.html"].found
        assert f"../media/experiments/{name}/00004.jpg" in pages[f"experiments/{name}.html"].found
        for wanted in ("content_weight", "saved_total", "sha256", "wandb sync wandb/offline-run-"):
            assert wanted in text(f"experiments/{name}.html")
        assert name in text("summary.md")
    assert "content_weight" in text("index.html")  # in which the two differ
    assert "media/figures/both.svg" in pages["index.html"].found
    assert read_picture(Path("reports/sheets/both.png")).width > 300


def test_pages_need_nothing_outside_their_folder(pages: dict[str, References]) -> None:
    for page, content in pages.items():
        for reference in content.found:
            path, _, place = reference.partition("#")
            target = Path("reports") / Path(page).parent / path if path else Path("reports") / page
            assert reference == "data:," or target.is_file(), reference
            if place and not place.startswith("a="):
                assert f'id="{place}"' in target.read_text("utf-8")
    for file in Path("reports").rglob("*.*"):
        if file.suffix in (".css", ".svg", ".js"):
            assert not re.search(r"url\((?!#)|@import|href=\"(?!#)", file.read_text("utf-8")), file


def test_names_and_credits_are_escaped_and_images_described(pages: dict[str, References]) -> None:
    for page, content in pages.items():
        assert HOSTILE not in text(page)
        assert content.undescribed == []
    assert "&lt;script&gt;" in text("index.html")
    assert "&lt;script&gt;" in text("experiments/second.html")


def test_settings_that_differ_from_the_defaults_are_marked(pages: dict[str, References]) -> None:
    changed = re.findall(r'class="changed"><th scope="row">(\w+)', text("experiments/second.html"))
    assert set(changed) == {"content", "style", "init"}


def test_report_has_the_same_bytes_twice(pages: dict[str, References]) -> None:
    before = {path: path.read_bytes() for path in Path("reports").rglob("*") if path.is_file()}
    report()
    after = {path: path.read_bytes() for path in Path("reports").rglob("*") if path.is_file()}
    assert after == before
    assert len(before) > 15


def test_cells_run_again_give_the_same_report_but_for_the_name_of_the_run(
    pages: dict[str, References],
) -> None:
    def contents() -> dict[Path, bytes]:
        return {
            path: re.sub(rb"offline-run-[\w-]+", b"", path.read_bytes())
            for path in Path("reports").rglob("*")
            if path.is_file()
        }

    before = contents()
    for name in ("first", "second"):
        stylize(name)
    report()
    assert contents() == before


def test_removed_experiment_leaves_the_report(cells: Path, weights_file: Path) -> None:
    report()

    def edit(params: Any) -> None:
        del params["experiments"]["second"]
        params["figures"] = {}

    change(cells, weights_file, edit)
    report()
    assert "second" not in text("index.html")
    assert "Other experiments" in text("index.html")
    assert not Path("reports/media/experiments/second").exists()
    assert not Path("reports/experiments/second.html").exists()


def test_experiment_that_failed_is_shown_with_its_reason(cells: Path) -> None:
    (paths.EXPERIMENTS / "second/image.png").unlink()  # as DVC does before it runs a stage
    with pytest.raises(UserError), recording_failure("second"):
        raise UserError("loss is nan: </script><b>lower</b> | lr")
    report()
    for page in ("index.html", "experiments/second.html"):
        assert "No result." in text(page)
        assert "When last run: loss is nan: &lt;/script&gt;&lt;b&gt;lower&lt;/b&gt; | lr" in text(
            page
        )
    assert "lower&lt;/b&gt; \\| lr" in text("summary.md")
    assert "<b>lower" not in text("compare.html")
    assert "media/experiments/first/image.png" in text("index.html")


def test_run_that_ended_early_is_shown_with_its_reason(cells: Path) -> None:
    status = {"kind": "divergence", "reason": "total is nan <b>", "notes": ["Diverged | once"]}
    (paths.EXPERIMENTS / "first/status.json").write_text(json.dumps(status))
    report()
    for page in ("index.html", "experiments/first.html"):
        assert text(page).count("Diverged | once.") == 1
        assert text(page).count("Ended by divergence: total is nan &lt;b&gt;.") == 1
        assert "media/experiments/first/image.png" in text(page)
    assert "first: Diverged \\| once. Ended by divergence: total is nan &lt;b&gt;." in text(
        "summary.md"
    )
    assert "Ended by" not in text("experiments/second.html")


def test_picture_that_cannot_be_fetched_is_the_reason(cells: Path, weights_file: Path) -> None:
    third = {"content": "chelsea", "style": "lost"}

    def edit(params: Any) -> None:
        params["images"]["lost"] = {"source": "data/own/lost.png"}
        params["experiments"]["third"] = third

    change(cells, weights_file, edit)
    with pytest.raises(UserError):
        fetch(read_params())
    report()
    assert "When last run: image &#39;lost&#39; from data/own/lost.png" in text("index.html")


def test_interrupted_run_leaves_no_earlier_result(cells: Path) -> None:
    paths.WEIGHTS_FILE.unlink()
    with pytest.raises(UserError):
        stylize("first")
    report()
    assert "When last run" in text("experiments/first.html")


def test_report_without_any_result_says_so(cells: Path) -> None:
    shutil.rmtree(paths.EXPERIMENTS)
    report()
    assert text("index.html").count("Not run yet.") == 2
    assert "no result: Not run yet." in text("summary.md")


def test_experiment_that_never_ran_is_shown_with_what_to_do(
    cells: Path, weights_file: Path
) -> None:
    third = {"content": "chelsea", "style": "gravel"}
    change(cells, weights_file, lambda params: params["experiments"].update(third=third))
    report()
    assert "Not run yet. To run it: dvc repro stylize@third" in text("index.html")
    assert "Not run yet" in text("experiments/third.html")


def test_results_of_other_settings_are_not_shown_under_these(
    cells: Path, weights_file: Path
) -> None:
    change(cells, weights_file, lambda p: p["experiments"]["first"].update(content_weight=9.0))
    report()
    assert "Made with other settings, pictures or weights" in text("index.html")
    assert "media/experiments/first/image.png" not in text("index.html")


@pytest.mark.parametrize("file", ["data/images/gravel.png", str(paths.WEIGHTS_FILE)])
def test_results_of_other_inputs_are_not_shown_under_these(cells: Path, file: str) -> None:
    Path(file).write_bytes(save_picture(cells / "other.png").read_bytes())
    report()
    assert "Made with other settings, pictures or weights" in text("experiments/first.html")


def test_results_of_another_warm_start_are_not_shown_under_this(cells: Path) -> None:
    file = paths.EXPERIMENTS / "first" / "provenance.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    record["inputs"]["warm_start_weights"] = 64 * "0"
    file.write_text(json.dumps(record), encoding="utf-8")
    report()
    assert "Made with other settings, pictures or weights" in text("experiments/first.html")


def test_run_of_another_picture_is_not_given_as_this_ones(cells: Path) -> None:
    save_picture(paths.EXPERIMENTS / "first" / "image.png")
    report()
    assert "no run of this picture is known here" in text("experiments/first.html")
    assert "wandb sync" in text("experiments/second.html")


def test_wandb_gets_one_table_of_all_experiments(cells: Path) -> None:
    for run in cells.glob("wandb/offline-run-*"):
        run.rename(run.with_name(f"earlier-{run.name}"))
    report()
    (table,) = cells.glob("wandb/offline-run-*/files/media/table/*.json")
    content = json.loads(table.read_text())
    assert content["columns"][:4] == ["experiment", "figure", "content", "style"]
    assert [row[:2] for row in content["data"]] == [["first", "both"], ["second", "both"]]
    assert all(row[2:5] == ["Image"] * 3 for row in content["data"])
    text = json.dumps(inspected(cells))
    pictures = {"chelsea", "coffee", "gravel", "result of first", "result of second"}
    assert len(set(re.findall(r"media/images/\w+\.png", text))) == len(pictures)
