"""The page in a real browser, offline: no error, no request, no barrier, and it does what it offers.

Needs Chromium (Debian: chromium) and the packages playwright and axe-playwright-python. The latter carries axe-core
(MPL-2.0): nothing of it is in this repository.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from privacy.report.render import compare_html
from tests.privacy.report.test_comparison import made
from tests.privacy.report.test_render import page

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs pip install axe-playwright-python")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

WIDTHS = {"wide": 1280, "narrow": 390}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM)
        yield opened
        opened.close()


class Opened:
    """A page that was opened without a network, and what it complained of."""

    def __init__(
        self, browser: Any, path: Path, content: str, *, width: int = 1280, scheme: str = "light", **more: Any
    ):
        path.write_text(content, encoding="utf-8")
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, **more
        )
        self.page = context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.own = path.as_uri()


def contents() -> dict[str, str]:
    return {name: page(name) for name in ("deployed", "troubled", "withdrawn", "plain", "lifetime", "big_small")} | {
        "compare": compare_html([("a", made(3, 0.5)), ("b", made(9, 0.7))]),
        "chinese": page("troubled", "zh"),
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "name", ["deployed", "troubled", "withdrawn", "plain", "lifetime", "big_small", "compare", "chinese"]
)
def test_it_opens_without_error_request_or_barrier_and_fits(
    browser: Any, tmp_path: Path, name: str, width: str, scheme: str
) -> None:
    opened = Opened(browser, tmp_path / "report.html", contents()[name], width=WIDTHS[width], scheme=scheme)
    found = axe.Axe().run(opened.page)
    assert [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found.response["violations"]] == []
    assert opened.complaints == []
    assert [url for url in opened.requests if url != opened.own and not url.startswith("data:")] == []
    assert opened.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    opened.page.context.close()


def test_it_reads_without_a_script(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "report.html", page("big_small"), java_script_enabled=False)
    rows = opened.page.locator("#budgets tbody tr")
    assert rows.count() == 120
    assert all(row.is_visible() for row in (rows.first, rows.last))
    assert opened.page.locator(".theme").is_hidden()
    opened.page.context.close()


def test_the_theme_goes_round_and_is_kept(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "report.html", page("deployed"))
    button = opened.page.locator(".theme")

    def paper() -> str:
        return str(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))

    system, names = paper(), [button.inner_text()]
    button.click()
    assert paper() == system
    button.click()
    names.append(button.inner_text())
    assert paper() != system
    opened.page.reload()
    names.append(button.inner_text())
    assert names == ["Theme: system", "Theme: dark", "Theme: dark"]
    opened.page.context.close()


def test_a_long_table_can_be_searched_filtered_sorted_and_opened(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "report.html", page("big_small"))
    table = opened.page.locator("#budgets table")
    rows = table.locator("tbody tr:not(.folded)")
    assert rows.count() == 25
    opened.page.get_by_label("Find a client").fill("0017")
    assert rows.count() == 1
    assert opened.page.locator("#budgets output").inner_text() == "1 of 120 clients"
    opened.page.get_by_label("Find a client").fill("nobody")
    assert opened.page.locator("#budgets output").inner_text() == "No client matches."
    opened.page.get_by_label("Find a client").fill("")
    opened.page.get_by_label("Show", exact=True).select_option("refused")
    assert 0 < rows.count() < 120
    assert all("refused" in (row.get_attribute("data-kinds") or "") for row in rows.all())
    opened.page.get_by_label("Show", exact=True).select_option("all")
    table.get_by_role("button", name="Client").click()
    assert rows.first.locator("th").inner_text() == "client-0000"
    assert table.locator("th").first.get_attribute("aria-sort") == "ascending"
    table.get_by_role("button", name="Spent").click()
    spent = [float(row.locator("td").first.get_attribute("data-v") or 0) for row in rows.all()]
    assert spent == sorted(spent, reverse=True)
    opened.page.get_by_role("button", name="Show all 120").first.click()
    assert rows.count() == 120
    opened.page.context.close()


def test_a_chart_is_read_by_pointer_and_by_keys(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "report.html", page("deployed"))
    plot = opened.page.locator("#rounds .plot")
    plot.focus()
    opened.page.keyboard.press("Home")

    def reading() -> str:
        return (plot.get_attribute("aria-valuetext") or "").replace("\u00a0", " ")

    assert reading() == "round 1: ε ≤ 0.39"
    opened.page.keyboard.press("ArrowRight")
    assert reading().startswith("round 2: ε ≤ ")
    tip = plot.locator(".tip")
    assert tip.is_visible()
    plot.scroll_into_view_if_needed()
    box = plot.locator("svg.wide").bounding_box()
    opened.page.mouse.move(box["x"] + box["width"] * 0.97, box["y"] + box["height"] / 2)
    assert tip.inner_text() == plot.get_attribute("aria-valuetext")
    assert reading() == "round 20: ε ≤ 1.57 (forecast)"
    opened.page.context.close()


def test_on_paper_it_is_light_and_everything_is_open(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "report.html", page("troubled"), scheme="dark")
    opened.page.emulate_media(media="print")
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.page.locator("nav").is_hidden()
    opened.page.context.close()
