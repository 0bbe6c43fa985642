"""The page as a person meets it: in a browser, from a file, with names that try to be code."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from bioimg_jax.report import write_report
from tests.report.test_page import write_run

NAME = "<script>document.title='hacked'</script>\"onload=\"alert(1)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, dict, list[str]]]:
    """(the page, its results, every console error and request that was not for the file)."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    browser_path = next(filter(None, found), None)
    if browser_path is None:
        pytest.skip("no chromium")
    folder = tmp_path_factory.mktemp("report")
    results = write_run(folder, name=NAME)
    path: Path = write_report(folder)
    trouble: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.on("console", lambda m: trouble.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on(
            "request",
            lambda r: None if r.url.startswith(("data:", path.as_uri())) else trouble.append(r.url),
        )
        page.goto(path.as_uri())
        yield page, results, trouble
        browser.close()


def column(page: Page, n: int) -> list[str]:
    cells = page.locator(f"#all-scores tbody tr:visible td:nth-child({n})")
    return [text.strip() for text in cells.all_inner_texts()]


def test_the_ladder_is_seen_first(page: tuple) -> None:
    box = page[0].locator("#ladder img").first.bounding_box()
    assert box is not None and 0 < box["y"] < 450 and box["width"] > 600
    assert page[0].locator("#ladder .word").first.inner_text() == "below"


def test_values_are_those_of_results_json(page: tuple) -> None:
    browser, results, _ = page
    rows = results["scores"]
    assert column(browser, 3) == [row["representation"].strip() for row in rows]
    assert column(browser, 8) == [f"{row['value']:.3f}" for row in rows]


def test_a_click_sorts_and_words_filter(page: tuple) -> None:
    browser, results, _ = page
    head = browser.locator("#all-scores thead th:nth-child(8)")
    head.click()
    values = sorted(row["value"] for row in results["scores"])
    assert column(browser, 8) == [f"{value:.3f}" for value in values]
    head.click()
    assert column(browser, 8) == [f"{value:.3f}" for value in reversed(values)]
    words = browser.locator("#scores ~ .filter input")
    words.fill("STEP0  final")
    assert column(browser, 8) == ["0.540"]
    assert f"of {len(values)} rows" in browser.locator("#scores ~ .filter output").inner_text()
    words.fill("")
    assert len(column(browser, 8)) == len(values)


def test_every_table_of_many_rows_sorts_and_filters(page: tuple) -> None:
    browser = page[0]
    tables = browser.locator("table.sortable")
    assert tables.count() > 2  # the ladders' values, the numbers, all scores
    browser.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    filtered = 0
    for i in range(tables.count()):
        table = tables.nth(i)
        rows = table.locator("tbody tr:visible")
        n = rows.count()
        first = table.locator("thead th").first
        first.click()
        assert first.get_attribute("aria-sort") == "ascending" and rows.count() == n
        if n >= 6:
            filtered += 1
            words = table.locator("xpath=../preceding-sibling::p[1]").locator("input")
            words.fill("no such row anywhere")
            assert rows.count() == 0
            words.fill("")
            assert rows.count() == n
    assert filtered


def test_nothing_ran_and_nothing_was_asked_of_the_network(page: tuple) -> None:
    browser, _, trouble = page
    assert browser.title() == f"{NAME} on cells"
    assert NAME in browser.locator("h1").inner_text()
    assert not trouble


def test_it_fits_a_phone_and_prints(page: tuple, tmp_path: Path) -> None:
    browser = page[0]
    browser.set_viewport_size({"width": 390, "height": 800})
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    # Names stay whole and figures readable: what is wide scrolls in its own box.
    browser.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    floor = browser.locator("#ladder details td.name").first.bounding_box()
    figure = browser.locator("#ladder img").first.bounding_box()
    assert floor is not None and floor["height"] < 40
    assert figure is not None and figure["width"] >= 500
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    # A4 between the page's margins, and no table or picture beyond them.
    browser.set_viewport_size({"width": 703, "height": 1000})
    browser.emulate_media(media="print")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 703
    tallest = "Math.max(...[...document.images].map((i) => i.getBoundingClientRect().height))"
    assert browser.evaluate(tallest) <= 225 / 25.4 * 96 + 1
    assert not browser.locator("nav, .filter").first.is_visible()
    browser.emulate_media(media="screen")
    pdf = browser.pdf(path=tmp_path / "report.pdf")
    assert pdf.startswith(b"%PDF")
    # An opened ladder is longer than a page: it starts on the first one all the same.
    kept = "getComputedStyle(document.querySelector('.ladder')).breakInside"
    browser.emulate_media(media="print")
    assert browser.evaluate(kept) == "auto"
    browser.evaluate("for (const d of document.querySelectorAll('details')) d.open = false")
    assert browser.evaluate(kept) == "avoid"
    browser.emulate_media(media="screen")
    browser.set_viewport_size({"width": 1280, "height": 800})


def test_a_table_of_thousands_of_rows_scrolls_and_is_not_printed(
    page: tuple, tmp_path: Path
) -> None:
    browser, results, _ = page
    many = {**results, "scores": results["scores"] * 60}
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "results.json").write_text(json.dumps(many))
    address = browser.url
    browser.goto(write_report(folder).as_uri())
    table = browser.locator("#all-scores")
    assert browser.locator("#all-scores tbody tr").count() == len(many["scores"]) > 200
    height = browser.evaluate("document.querySelector('.long').getBoundingClientRect().height")
    assert height <= 0.85 * 800 + 1
    browser.emulate_media(media="print")
    assert not table.is_visible() and browser.locator(".printed").is_visible()
    browser.emulate_media(media="screen")
    browser.goto(address)
    assert not browser.locator(".printed").is_visible()
