"""The page for votes in a browser: counts, files of votes, and ratings by Bradley–Terry."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from benchmarks.vote_page import PARTS, Pair, write_page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NODE = shutil.which("node")
PRESETS = "brilliant", "middling", "poor"
PAIRS = Pair("cat", "oil"), Pair("dog", "<ink>")
SHOWN = (
    """[...document.querySelectorAll(".choice img")].map((image) => image.src.split("/").pop())"""
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two pairs by three presets."""
    source = tmp_path_factory.mktemp("source")
    originals, results = {}, {}
    for number, pair in enumerate(PAIRS):
        files = []
        for place, name in enumerate(("content", "style", *PRESETS)):
            text = PngImagePlugin.PngInfo()
            text.add_itxt("Settings", name)
            files.append(source / f"{number}-{name}.png")
            picture = Image.new("RGB", (48, 32), (40 * place, 90 * number, 128))
            picture.save(files[-1], pnginfo=text)
        originals[pair] = files[0], files[1]
        results[pair] = dict(zip(PRESETS, files[2:], strict=True))
    folder = tmp_path_factory.mktemp("votes") / "page"
    write_page(folder, originals, results)
    return folder


def data_of(folder: Path) -> dict[str, Any]:
    page = (folder / "vote.html").read_text("utf-8")
    text = page.partition('id="data">')[2].partition("</script>")[0]
    data: dict[str, Any] = json.loads(text)
    return data


def test_pictures_do_not_tell_which_preset_made_them(folder: Path) -> None:
    files = {file.name: file for file in (folder / "pictures").iterdir()}
    pairs = data_of(folder)["pairs"]
    assert [pair["name"] for pair in pairs] == ["cat × oil", "dog × <ink>"]
    named = [pair[role] for pair in pairs for role in ("content", "style")]
    named += [file for pair in pairs for _, file in pair["results"]]
    assert sorted(named) == sorted(files)
    for name, file in files.items():
        assert not any(preset in name for preset in PRESETS)
        with Image.open(file) as picture:
            assert picture.info == {}


def test_equal_pictures_of_two_presets_have_two_names(tmp_path: Path) -> None:
    file = tmp_path / "same.png"
    Image.new("RGB", (20, 16)).save(file)
    pair = PAIRS[0]
    write_page(tmp_path / "page", {pair: (file, file)}, {pair: {"one": file, "two": file}})
    (made,) = data_of(tmp_path / "page")["pairs"]
    assert len({name for _, name in made["results"]}) == 2


@pytest.mark.skipif(NODE is None, reason="no node on the path")
def test_strengths_are_those_that_the_comparisons_come_from() -> None:
    """Wins in the proportion of the strengths have just these as their most likely strengths."""
    assert NODE is not None
    script = (PARTS / "bradley-terry.js").read_text("utf-8")
    script += """
    const win = (winner, loser, count) => ({ winner, loser, count });
    const three = [win("a", "b", 1), win("b", "a", 2), win("b", "c", 1), win("c", "b", 2),
      win("a", "c", 1), win("c", "a", 4)];
    const always = [win("a", "b", 7)];
    console.log(JSON.stringify([
      bradleyTerry(["a", "b"], [win("a", "b", 3), win("b", "a", 1)], 0),
      bradleyTerry(["a", "b", "c"], three, 0),
      bradleyTerry(["a", "b"], always, 1),
      bradleyTerry(["a", "b"], [], 1),
    ]));
    """
    done = subprocess.run([NODE, "-e", script], capture_output=True, text=True, check=True)
    two, three, always, nothing = json.loads(done.stdout)
    assert two["a"] / two["b"] == pytest.approx(3)
    assert three == pytest.approx({"a": 0.5, "b": 1, "c": 2})
    # One tie with strength 1: 7 + ½ = 7 p / (p + 1/p) + p / (p + 1), with p the strength of a.
    p = always["a"]
    assert 7 * p / (p + 1 / p) + p / (p + 1) == pytest.approx(7.5)
    assert always["b"] == pytest.approx(1 / p)
    assert nothing == {"a": 1, "b": 1}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api",
        reason="no playwright: pip install 'style-transfer-pipeline[browser]'",
    )
    if CHROMIUM is None:
        pytest.skip("no Chromium on the path")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, folder: Path) -> Iterator[Any]:
    """The page, in a test that fails on any error and on any request outside the page's folder."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, errors = context.new_page(), []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(request.url))
    allowed = f"{folder.as_uri()}/", "data:", "blob:"
    page.on("request", lambda r: None if r.url.startswith(allowed) else errors.append(r.url))
    page.goto(f"{folder.as_uri()}/vote.html")
    yield page
    context.close()
    assert errors == []


def presets_of(folder: Path) -> dict[str, str]:
    return {file: preset for pair in data_of(folder)["pairs"] for preset, file in pair["results"]}


def vote_for(page: Any, folder: Path, order: tuple[str, ...]) -> None:
    """Clicks the picture whose preset comes first in an order."""
    left, right = (presets_of(folder)[file] for file in page.evaluate(SHOWN))
    page.locator("#left" if order.index(left) < order.index(right) else "#right").click()


def downloaded(page: Any, file: Path) -> dict[str, Any]:
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the votes").click()
    assert download.value.suggested_filename == "votes.json"
    download.value.save_as(file)
    content: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return content


def ratings(page: Any) -> list[list[str]]:
    rows: list[list[str]] = page.evaluate(
        "[...document.querySelectorAll('#ratings tbody tr')]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    return rows


def test_four_pictures_of_one_pair_are_shown_without_the_names_of_presets(
    page: Any, folder: Path
) -> None:
    loaded = page.evaluate(
        """async () => Promise.all([...document.images].map(async (image) => {
            await image.decode();
            return [image.src.split("/").pop(), image.alt];
        }))"""
    )
    assert len(loaded) == 4
    assert all(description for _, description in loaded)
    files = {name for name, _ in loaded}
    (pair,) = [each for each in data_of(folder)["pairs"] if each["content"] in files]
    assert files <= {pair["content"], pair["style"], *(file for _, file in pair["results"])}
    shown = page.locator("main").inner_text()
    assert not any(preset in shown for preset in PRESETS)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_every_comparison_comes_once_before_any_comes_again(page: Any) -> None:
    comparisons = set()
    for _ in range(6):
        comparisons.add(frozenset(page.evaluate(SHOWN)))
        page.keyboard.press("ArrowDown")
    assert len(comparisons) == 6


def test_clicks_and_keys_are_counted_and_downloaded(
    page: Any, folder: Path, tmp_path: Path
) -> None:
    expected = []
    for choice, act in (
        ("left", lambda: page.locator("#left").click()),
        ("right", lambda: page.keyboard.press("ArrowRight")),
        ("tie", lambda: page.get_by_role("button", name="Tie").click()),
        ("left", lambda: page.keyboard.press("ArrowLeft")),
    ):
        expected.append((*page.evaluate(SHOWN), choice))
        act()
    assert page.locator("#count").inner_text() == "4 votes"
    content = downloaded(page, tmp_path / "votes.json")
    assert [(each["left"], each["right"], each["choice"]) for each in content["votes"]] == expected
    known = presets_of(folder)
    for each in content["votes"]:
        assert each["left_preset"] == known[each["left"]]
        assert each["right_preset"] == known[each["right"]]
    assert len({each["id"] for each in content["votes"]}) == 4


def test_preset_that_always_wins_is_first_in_ratings_that_are_shown_only_when_asked(
    page: Any, folder: Path
) -> None:
    for _ in range(12):
        vote_for(page, folder, PRESETS)
    assert not page.locator("#ratings").is_visible()
    page.get_by_role("button", name="Show the ratings").click()
    assert page.locator("#ratings").is_visible()
    rows = ratings(page)
    assert [row[0] for row in rows] == list(PRESETS)
    assert [row[2] for row in rows] == ["8", "8", "8"]
    strengths = [float(row[1]) for row in rows]
    assert strengths[0] * strengths[2] == pytest.approx(strengths[1] ** 2, rel=0.1)


def test_files_are_added_up_and_a_file_that_is_loaded_twice_counts_once(
    page: Any, folder: Path, browser: Any, tmp_path: Path
) -> None:
    for _ in range(3):
        vote_for(page, folder, PRESETS)
    downloaded(page, tmp_path / "first.json")
    other = browser.new_page()
    other.goto(f"{folder.as_uri()}/vote.html")
    for _ in range(2):
        other.keyboard.press("ArrowDown")
    downloaded(other, tmp_path / "second.json")
    other.locator("#load").set_input_files([tmp_path / "first.json", tmp_path / "second.json"])
    other.wait_for_function("document.querySelector('#message').textContent.includes('second')")
    assert other.locator("#count").inner_text() == "5 votes"
    message = other.locator("#message").inner_text()
    assert message == "first.json: 3 votes added. second.json: 0 votes added."
    assert len(downloaded(other, tmp_path / "both.json")["votes"]) == 5
    other.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "wrong.json is not a file of votes."),
        ('{"votes": []}', "wrong.json is not a file of votes."),
        (
            '{"format": "preset votes 1", "votes": [{"id": "1", "left": "a", "right": "b", '
            '"choice": "tie"}]}',
            "wrong.json has votes on other pictures than those of this page.",
        ),
    ],
)
def test_file_that_does_not_fit_is_refused(
    page: Any, content: str, message: str, tmp_path: Path
) -> None:
    page.keyboard.press("ArrowLeft")
    (tmp_path / "wrong.json").write_text(content, "utf-8")
    page.locator("#load").set_input_files(tmp_path / "wrong.json")
    page.wait_for_function("document.querySelector('#message').textContent !== ''")
    assert page.locator("#message").inner_text() == message
    assert page.locator("#count").inner_text() == "1 vote"
