"""The page of a report in a real Chromium: `make test-browser`."""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import made_reports
from rlskit.data import load
from rlskit.report import report_runs

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs Playwright: make test-browser"
)

CHROMIUM = os.environ.get("RLSKIT_CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: make test-browser")

CARDS = "#grid button"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = made_reports.whole(
        tmp_path_factory.mktemp("browser") / "run", names="a_very_long_name" * 12,
        label="<b>a name</b> that is_far_too_long_for_one_line_of_a_telephone_held_upright",
    )  # fmt: skip
    report_runs([place], place, data=f"npz:{place.parent / 'images.npz'}")
    return place


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def said() -> list[str]:
    """What the page says on its console, and whom it asks."""
    return []


@pytest.fixture
def opened(
    request: pytest.FixtureRequest, chromium: Any, folder: Path, said: list[str]
) -> Iterator[Any]:
    """The page in a theme and of a width, (light, 1200) unless a test asks for others."""
    theme, width = getattr(request, "param", ("light", 1200))
    context = chromium.new_context(color_scheme=theme, viewport={"width": width, "height": 800})
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asked: said.append(asked.url))
    page.goto((folder / "report.html").as_uri())
    page.wait_for_selector(CARDS)
    yield page
    context.close()


BOTH = [("light", 1200), ("dark", 360)]


@pytest.mark.parametrize("opened", BOTH, indirect=True)
def test_nothing_is_wrong_and_nobody_is_asked(opened: Any, folder: Path, said: list[str]) -> None:
    opened.locator(CARDS).first.click()
    asked = [one for one in said if not one.startswith("data:")]
    assert asked == [(folder / "report.html").as_uri()]


@pytest.mark.parametrize("opened", [("light", 360), ("dark", 360)], indirect=True)
def test_a_telephone_scrolls_in_one_direction(opened: Any) -> None:
    opened.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    width = "document.documentElement.scrollWidth"
    assert opened.evaluate(width) == 360
    wide = opened.evaluate("""[...document.querySelectorAll("body *")]
        .filter((one) => !one.closest(".scroll, svg, dialog"))
        .filter((one) => one.getBoundingClientRect().right > 361).map((one) => one.outerHTML)""")
    assert wide == []
    opened.locator(CARDS).first.click()
    assert opened.evaluate("document.getElementById('view').scrollWidth") <= 360
    assert opened.evaluate(width) == 360


def luminance(colour: str) -> float:
    """Source: https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    parts = [int(one) / 255 for one in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("opened", [("light", 1200), ("dark", 1200)], indirect=True)
def test_both_themes_can_be_read(opened: Any, request: pytest.FixtureRequest) -> None:
    style = "(one) => getComputedStyle(document.querySelector(one))"
    paper = luminance(opened.evaluate(f"({style})('body').backgroundColor"))
    assert (paper > 0.5) == (request.node.callspec.params["opened"][0] == "light")
    texts = ["body", ".quiet", "nav a", ".verdict.pass", ".verdict.fail", ".verdict.undecided",
             ".label.broken b", ".label.held b", "figure svg text"]  # fmt: skip
    for text in texts:
        fill = "fill" if "svg" in text else "color"
        ink = luminance(opened.evaluate(f"({style})('{text}').{fill}"))
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5, text


def cards(page: Any) -> list[int]:
    return page.eval_on_selector_all(CARDS, "all => all.map((one) => Number(one.dataset.index))")  # type: ignore[no-any-return]


def test_filter_and_sort(opened: Any, folder: Path) -> None:
    """Every third of twelve images is broken, and its label is its index modulo 4."""
    assert cards(opened) == list(range(12))
    opened.select_option("#pick-state", "broken")
    assert cards(opened) == [0, 3, 6, 9]
    assert opened.inner_text("#count") == "4 of 12 images; 4 shown"
    opened.select_option("#pick-class", "2")
    assert cards(opened) == [6]
    opened.select_option("#pick-class", "")
    opened.select_option("#pick-state", "held")
    opened.select_option("#pick-sort", "l2")
    opened.select_option("#pick-order", "down")
    with (folder / "rls" / "pgd" / "per_image.csv").open(newline="") as file:
        far = {int(line["index"]): float(line["l2"]) for line in csv.DictReader(file)}
    held = [index for index in far if index % 3]
    assert cards(opened) == sorted(held, key=lambda index: -far[index])
    opened.select_option("#pick-sort", "class")
    assert cards(opened)[:2] == [7, 11]
    assert opened.locator("#pick-row").is_hidden()  # there is but one


def test_the_pictures_are_those_of_the_data(opened: Any, folder: Path) -> None:
    images = load(f"npz:{folder.parent / 'images.npz'}").images(range(12))
    read = """(one) => [...one.getContext("2d").getImageData(0, 0, 5, 6).data]
        .filter((_, i) => i % 4 === 0)"""
    for place in (0, 7, 11):
        canvas = opened.locator(CARDS).nth(place).locator("canvas").first
        opened.wait_for_function(
            "(one) => one.getContext('2d').getImageData(0, 0, 1, 1).data[3] > 0",
            arg=canvas.element_handle(),
        )
        assert canvas.get_attribute("aria-label") == "before"
        assert canvas.evaluate(read) == (images[place, 0] * 255).round().int().flatten().tolist()


def test_the_large_view_walks_through_what_is_chosen(opened: Any) -> None:
    opened.select_option("#pick-state", "broken")
    opened.locator(CARDS).nth(1).click()
    view = opened.locator("#view")
    assert view.is_visible()
    facts = view.inner_text()
    assert "3, a_very_long_name" in facts
    assert "difference, 15.9 times as large" in facts
    assert "<b>a name</b>" in facts
    opened.keyboard.press("ArrowRight")
    assert "6, a_very_long_name" in view.inner_text()
    view.get_by_role("button", name="Previous").click()
    assert "3, a_very_long_name" in view.inner_text()
    opened.keyboard.press("Escape")
    assert view.is_hidden()
