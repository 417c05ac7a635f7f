"""The report: complete, escaped, self-contained, the same bytes twice."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_params, write_params
from test_stylize import prepared
from test_tracking import inspected

from pipeline.params import read_params
from pipeline.stages.report import report
from pipeline.stages.stylize import stylize

__all__ = ["prepared"]


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


@pytest.fixture
def page(prepared: Path, weights_file: Path) -> str:
    params: Any = tiny_params(weights_file)
    params["images"]["coffee"]["credit"] = "<script>alert('credit')</script>"
    write_params(prepared, params)
    for name in ("first", "second"):
        stylize(name, read_params())
    report(read_params())
    return Path("reports/index.html").read_text()


def test_report_shows_every_experiment_with_all_it_has(page: str) -> None:
    for wanted in ("first", "second", "CC0", "content_weight", "saved_total", "sha256"):
        assert wanted in page
    references = References()
    references.feed(page)
    for name in ("first", "second"):
        assert f"media/{name}/image.png" in references.found
        assert f"media/{name}/00004.png" in references.found
    assert references.undescribed == []
    assert "&lt;script&gt;" in page
    assert "<script" not in page


def test_report_needs_nothing_outside_its_folder(page: str) -> None:
    references = References()
    references.feed(page)
    for reference in references.found:
        assert reference.startswith("#") or (Path("reports") / reference).is_file()
    assert not re.search(r"url\(|@import|<link", page)
    picture = Path("reports/media/losses.svg").read_text()
    assert not re.search(r'href="(?!#)', picture)


def test_settings_that_differ_from_the_defaults_are_marked(page: str) -> None:
    changed = re.findall(r'class="changed"><th scope="row">(\w+)', page)
    assert "init" in changed
    assert "size" not in changed


def test_report_has_the_same_bytes_twice(page: str) -> None:
    before = {path: path.read_bytes() for path in Path("reports").rglob("*") if path.is_file()}
    report(read_params())
    after = {path: path.read_bytes() for path in Path("reports").rglob("*") if path.is_file()}
    assert after == before
    assert len(before) > 8


def test_removed_experiment_leaves_the_report(
    page: str, prepared: Path, weights_file: Path
) -> None:
    params: Any = tiny_params(weights_file)
    del params["experiments"]["second"]
    write_params(prepared, params)
    report(read_params())
    assert "second" not in Path("reports/index.html").read_text()
    assert not Path("reports/media/second").exists()


def test_wandb_gets_one_table_of_all_experiments(prepared: Path) -> None:
    for name in ("first", "second"):
        stylize(name, read_params())
    for run in prepared.glob("wandb/offline-run-*"):
        run.rename(run.with_name(f"earlier-{run.name}"))
    report(read_params())
    (table,) = prepared.glob("wandb/offline-run-*/files/media/table/*.json")
    content = json.loads(table.read_text())
    assert content["columns"][:5] == ["experiment", "content", "style", "result", "settings"]
    assert [row[0] for row in content["data"]] == ["first", "second"]
    assert all(row[1:4] == ["Image"] * 3 for row in content["data"])
    text = json.dumps(inspected(prepared))
    pictures = {"chelsea", "coffee", "gravel", "result of first", "result of second"}
    assert len(set(re.findall(r"media/images/\w+\.png", text))) == len(pictures)
