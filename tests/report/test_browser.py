"""The report in a browser: it loads, fits, responds to its controls, and requests nothing else."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_runs import finished

from pipeline import paths
from pipeline.imaging.output.result_files import write_result
from pipeline.stages.report import report

__all__ = ["finished"]

playwright = pytest.importorskip(
    "playwright.sync_api", reason="no playwright: pip install 'style-transfer-pipeline[browser]'"
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")

PAGES = ["index.html", "compare.html", "experiments/first.html", "experiments/second.html"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("browser")
    shutil.copytree(finished, workspace, dirs_exist_ok=True)
    with contextlib.chdir(workspace):
        report()
    return workspace / "reports"


@pytest.fixture
def page(browser: Any, folder: Path) -> Iterator[Any]:
    """A page that fails the test on any error, and on any request outside the report."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page, errors = context.new_page(), []
    page.on("console", lambda message: errors.append(message.text) if _is_error(message) else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(request.url))
    allowed = f"{folder.as_uri()}/", "data:"
    page.on("request", lambda r: None if r.url.startswith(allowed) else errors.append(r.url))
    yield page
    context.close()
    assert errors == []


def _is_error(message: Any) -> bool:
    return message.type in ("error", "warning")


def open_page(page: Any, folder: Path, name: str) -> None:
    page.goto(f"{folder.as_uri()}/{name}")


@pytest.mark.parametrize("name", PAGES)
def test_every_image_loads_and_has_a_description(page: Any, folder: Path, name: str) -> None:
    open_page(page, folder, name)
    images = page.evaluate(
        """async () => Promise.all([...document.images].map(async (image) => {
            image.loading = "eager";
            await image.decode().catch(() => null);
            return [image.src, image.naturalWidth, image.alt];
        }))"""
    )
    assert len(images) >= 2
    for source, width, description in images:
        assert width > 0, source
        assert description, source


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_runs_over_the_side(
    page: Any, folder: Path, name: str, scheme: str, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    open_page(page, folder, name)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize("name", PAGES)
def test_every_control_has_a_name_and_the_headings_their_order(
    page: Any, folder: Path, name: str
) -> None:
    open_page(page, folder, name)
    nameless = page.evaluate(
        """[...document.querySelectorAll("input, select, button")].filter((control) => {
            const label = control.ariaLabel || control.labels?.[0]?.textContent;
            const content = control.matches("button") ? control.textContent : "";
            return !(label || control.querySelector("img")?.alt || content).trim();
        }).length"""
    )
    assert nameless == 0
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map((h) => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_slider_uncovers_the_content_and_the_style(page: Any, folder: Path) -> None:
    open_page(page, folder, "experiments/first.html")
    over = page.locator(".slider img").nth(1)
    assert over.get_attribute("src").endswith("pictures/chelsea.jpg")
    page.get_by_label("against the style").check()
    assert over.get_attribute("src").endswith("pictures/gravel.jpg")
    cut = "document.querySelector('.slider').style.getPropertyValue('--cut')"
    assert page.evaluate(cut) == "0%"
    page.get_by_label("Share of the picture").focus()
    page.keyboard.press("End")
    assert page.evaluate(cut) == "100%"
    box = page.locator(".slider").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 4, box["y"] + 10)
    assert float(page.evaluate(cut).removesuffix("%")) == pytest.approx(25, abs=1)


def test_steps_of_a_run_follow_the_keyboard_and_the_mouse(page: Any, folder: Path) -> None:
    open_page(page, folder, "experiments/first.html")
    shown = page.locator(".frame img")
    assert shown.get_attribute("src").endswith("00004.jpg")
    page.get_by_label("evaluation").focus()
    page.keyboard.press("ArrowLeft")
    assert shown.get_attribute("src").endswith("00001.jpg")
    assert page.locator(".frame figcaption").inner_text() == "evaluation 1"
    page.locator(".strip button").nth(1).click()
    assert shown.get_attribute("src").endswith("00004.jpg")


def test_comparison_shows_both_and_in_what_they_differ(page: Any, folder: Path) -> None:
    open_page(page, folder, "compare.html#a=second&b=first")
    assert page.locator("#choice-a").input_value() == "second"
    differing = page.locator("#differences th").all_inner_texts()
    assert set(differing) == {"content", "init", "content_weight"}
    page.locator("#choice-a").select_option("first")
    assert page.locator("#differences").inner_text() == "none"
    assert page.url.endswith("#a=first&b=first")


def test_table_is_filtered_by_words_and_settings_and_sorted_by_columns(
    page: Any, folder: Path
) -> None:
    open_page(page, folder, "compare.html")
    names = "[...document.querySelectorAll('#all tbody tr:not([hidden]) th')].map(e => e.innerText)"
    assert page.evaluate(names) == ["first", "second"]
    page.get_by_label("Search").fill("SEC ond")
    assert page.evaluate(names) == ["second"]
    assert page.locator("#count").inner_text() == "1 of 2 experiments"
    page.get_by_label("Search").fill("")
    page.get_by_text("Filter by setting").click()
    choice = page.locator("label", has_text="init").locator("select")
    assert choice.locator("option").all_inner_texts() == ["any", "content", "noise"]
    choice.select_option("noise")
    assert page.evaluate(names) == ["first"]
    choice.select_option("any")
    title = page.locator("#all thead").get_by_role("button", name="experiment")
    title.click()
    assert page.evaluate(names) == ["first", "second"]
    title.click()
    assert page.evaluate(names) == ["second", "first"]
    assert page.locator("#all [aria-sort=descending]").inner_text() == "experiment"
    for measure, order in (("content", ["second", "first"]), ("style", ["first", "second"])):
        page.locator("#all thead").get_by_role("button", name=f"{measure} distance").click()
        assert page.evaluate(names) == order


def test_figure_plots_content_against_style(page: Any, folder: Path) -> None:
    open_page(page, folder, "index.html")
    plot = page.get_by_alt_text("Style distance against content distance").first
    assert not plot.is_visible()
    page.get_by_text("Content against style").first.click()
    plot.scroll_into_view_if_needed()
    for _ in range(100):
        if plot.evaluate("image => image.complete && image.naturalWidth") > 100:
            return
        page.wait_for_timeout(50)
    pytest.fail("the plot is not there")


def test_zoom_and_position_are_shared(page: Any, folder: Path) -> None:
    open_page(page, folder, "compare.html")
    assert page.locator("#choice-a").input_value() != page.locator("#choice-b").input_value()
    transforms = "[...document.querySelectorAll('.view img')].map((i) => i.style.transform)"
    page.locator(".view").first.hover()
    page.mouse.wheel(0, 100)
    assert page.evaluate("document.querySelector('#zoom').value") == "1"  # the page scrolls
    page.locator("#zoom").focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    zoomed = page.evaluate(transforms)
    assert zoomed[0] == zoomed[1]
    assert "scale(2)" in zoomed[0]
    page.locator(".view").first.focus()
    page.keyboard.press("ArrowRight")
    moved = page.evaluate(transforms)
    assert moved[0] == moved[1] != zoomed[0]
    page.locator(".view").first.hover()
    page.mouse.wheel(0, -100)
    page.wait_for_function(f"{transforms}[1].includes('scale(2.5)')")


def test_pages_can_be_read_without_javascript(browser: Any, folder: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    for name in PAGES:
        open_page(page, folder, name)
        assert page.locator("input:visible, select:visible").count() == 0
        assert page.locator("img:visible").count() >= 2
    open_page(page, folder, "compare.html")
    assert page.get_by_role("heading", name="All experiments").is_visible()
    context.close()


@pytest.mark.parametrize("name", PAGES)
def test_pages_load_and_run_nothing_but_their_own(browser: Any, folder: Path, name: str) -> None:
    """What markup in a title could do if it were not escaped."""
    context = browser.new_context()
    page, answered, failures = context.new_page(), [], set()
    page.on("response", lambda response: answered.append(response.url))
    page.on("requestfailed", lambda request: failures.add(request.failure))
    open_page(page, folder, name)
    refused = page.evaluate(
        """async () => {
            const refused = [];
            document.addEventListener("securitypolicyviolation",
                (event) => refused.push(event.effectiveDirective));
            const elements = `<img src="https://evil.example/t.png" onerror="window.ran = 1">
                <p style="color: red">x</p><iframe src="https://evil.example"></iframe>
                <object data="https://evil.example"></object>
                <form action="https://evil.example"><button>send</button></form>`;
            document.body.insertAdjacentHTML("beforeend", elements);
            const script = document.createElement("script");
            script.textContent = "window.ran = 2";
            document.body.append(script);
            for (const [tag, source] of [["script", "src"], ["link", "href"]]) {
                const outside = document.createElement(tag);
                outside.rel = "stylesheet";
                outside[source] = "https://evil.example/x";
                document.body.append(outside);
            }
            await fetch("https://evil.example").catch(() => null);
            document.querySelector("form button").click();
            const pause = () => new Promise((done) => setTimeout(done, 100));
            for (let i = 0; i < 100 && !refused.includes("form-action"); i++) await pause();
            return [...refused, `ran ${window.ran}`];
        }"""
    )
    context.close()
    assert all(url.startswith((folder.as_uri(), "data:")) for url in answered)
    assert failures <= {"csp"}
    kinds = {"img-src", "style-src-attr", "script-src-elem", "style-src-elem", "connect-src"}
    assert {*kinds, "script-src-attr", "frame-src", "form-action", "ran undefined"} <= set(refused)


def wait_until_loaded(image: Any) -> None:
    """Waits up to half a minute; the page forbids playwright's own way of waiting."""
    for _ in range(300):
        if image.evaluate("image => image.complete && image.naturalWidth > 0"):
            return
        image.page.wait_for_timeout(100)
    raise AssertionError("the image was not loaded")


def test_only_the_parts_of_a_large_result_that_are_seen_are_loaded(
    browser: Any, folder: Path, tmp_path: Path
) -> None:
    """Most of a print is outside of what a window shows."""
    shutil.copytree(folder.parent, tmp_path, dirs_exist_ok=True)
    with contextlib.chdir(tmp_path):
        write_result(torch.zeros(1, 3, 8000, 2600), paths.EXPERIMENTS / "first/image.png", text={})
        report()
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page, loaded = context.new_page(), set()
    page.on("requestfinished", lambda request: loaded.add(request.url))
    page.goto(f"{(tmp_path / 'reports').as_uri()}/experiments/first.html")
    page.wait_for_load_state("networkidle")
    assert not [url for url in loaded if "/parts/" in url]
    page.get_by_text("Show all pixels").click()
    page.locator(".parts img").first.evaluate("image => image.scrollIntoView()")
    wait_until_loaded(page.locator(".parts img").first)
    page.wait_for_timeout(500)
    seen = [url for url in loaded if "/parts/" in url]
    assert 0 < len(seen) < 96 * 0.8
    page.locator(".parts img").last.evaluate("image => image.scrollIntoView()")
    wait_until_loaded(page.locator(".parts img").last)
    context.close()
