"""The pictures that the browser keeps for the page: after a reload, bounded, deleted, or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import needs_chromium, shoot
from tests.support.page import (
    Open,
    begin,
    choose,
    compare_caches,
    drop,
    file_of,
    generate,
    kept,
    pages_at_fronts,
    problem,
    saved,
    thumbs,
)

pytestmark = needs_chromium

KEPT_NOTHING = "This browser keeps no pictures for this page: they are gone after a reload."


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    with pages_at_fronts(browser) as opened:
        yield opened


def figures(page: Page) -> Any:
    return page.locator("figure.done")


def told(page: Page) -> list[str]:
    """All that the gallery says and names, the settings included."""
    page.evaluate("document.querySelectorAll('figure details').forEach((each) => { each.open = true; })")
    text = page.locator("#cards").inner_text()
    names = page.locator("#cards [aria-label]").evaluate_all("all => all.map((each) => each.ariaLabel)")
    return [text, *names]


def test_pictures_and_their_settings_survive_a_reload(open_page: Open):
    page, front = open_page()
    begin(page, "first", count=3, Seed=5)
    expect(figures(page)).to_have_count(3)
    compare_caches(page)
    begin(page, "second", Seed=7)
    expect(page.locator(".verdict")).to_be_visible()
    page.get_by_label("Also with the cache off").uncheck()
    choose(page, file_of("one.png"))
    begin(page, "third\nof them", Seed=7)
    expect(figures(page)).to_have_count(6)
    kept(page)
    before, files = told(page), [saved(page, name) for name in ("first, seed 6", "second, cache on", "third")]
    page.reload()
    expect(figures(page)).to_have_count(6)
    assert told(page) == before
    assert [saved(page, name) for name in ("first, seed 6", "second, cache on", "third")] == files
    expect(page.locator("#kept")).to_have_text("6 kept in this browser")
    expect(page.get_by_role("slider", name="Before and after: third of them, seed 7")).to_be_visible()
    sizes = page.locator("figure img:visible").evaluate_all("all => all.map(({ naturalWidth }) => naturalWidth)")
    assert sizes.count(64) == 5
    page.get_by_role("button", name="Vary third").click()
    expect(figures(page)).to_have_count(7)
    assert front.asked[-1].files == front.asked[-2].files
    shoot(page, "history")


def test_a_picture_that_is_being_made_is_not_kept(open_page: Open):
    page, front = open_page()
    generate(page, "star")
    kept(page)
    front.gate.clear()
    begin(page, "moon")
    expect(page.locator(".state").first).to_have_text("step 1 of 8")
    page.reload()
    expect(figures(page)).to_have_count(1)
    expect(page.locator("figure")).to_have_count(1)
    front.gate.set()


def test_a_deleted_picture_stays_deleted(open_page: Open):
    page, _ = open_page()
    begin(page, "star", count=2, Seed=5)
    expect(figures(page)).to_have_count(2)
    page.get_by_role("button", name="Delete star, seed 5").click()
    kept(page)
    page.reload()
    expect(figures(page)).to_have_count(1)
    expect(page.get_by_role("button", name="Delete star, seed 6")).to_be_visible()


def test_all_are_deleted_after_a_question_by_keyboard(open_page: Open):
    page, _ = open_page()
    begin(page, "star", count=2)
    expect(figures(page)).to_have_count(2)
    delete = page.get_by_role("button", name="Delete all", exact=True)
    delete.first.press("Enter")
    question = page.get_by_role(
        "dialog", name="Delete all 2 pictures? They are gone from this page and from this browser."
    )
    expect(question.get_by_role("button", name="Keep them")).to_be_focused()
    page.keyboard.press("Escape")
    expect(question).not_to_be_visible()
    expect(delete).to_be_focused()
    expect(figures(page)).to_have_count(2)
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(figures(page)).to_have_count(0)
    expect(page.locator("#news")).to_have_text("All pictures are deleted")
    expect(page.get_by_role("button", name="Generate")).to_be_focused()
    page.reload()
    expect(page.get_by_text("Your pictures appear here.")).to_be_visible()
    expect(page.locator("#server")).to_have_text("1 model is ready")
    expect(page.locator("figure")).to_have_count(0)


# Bounds


FILL = """async ([count, bytes]) => {
  const { keep, kept } = await import("/history.js");
  const [entry] = await kept();
  for (let i = 0; i < count; i++) await keep({ ...entry, id: [i, 0, 0], pair: null, bytes }, Infinity, Infinity);
}"""


def test_the_oldest_pictures_go_when_there_are_too_many(open_page: Open):
    page, _ = open_page()
    begin(page, "star", Seed=7)
    expect(figures(page)).to_have_count(1)
    kept(page)
    page.evaluate(FILL, [199, 1000])
    page.reload()
    expect(figures(page)).to_have_count(200)
    _, *names = told(page)
    assert len(set(names)) == len(names), "each control of each has a name of its own"
    page.get_by_role("button", name="Delete star, seed 7 (200)", exact=True).focus()
    begin(page, "moon", Seed=8)
    expect(page.locator("#kept")).to_have_text("200 kept in this browser")
    expect(page.get_by_role("button", name="Delete star, seed 7 (200)", exact=True)).to_have_count(0)
    expect(page.get_by_role("button", name="Delete moon")).to_be_visible()


@pytest.mark.parametrize(
    ("sizes", "most", "most_bytes", "left"),
    [
        ([1, 1, 1, 1, 1], 3, 100, [4, 3, 2]),
        ([10, 10, 10, 10, 10], 100, 35, [4, 3, 2]),
        ([10, 30, 10, 10], 100, 35, [3, 2]),
        ([10, 50], 100, 35, [1]),
    ],
    ids=["number", "bytes", "a large one goes with what is older", "the newest stays"],
)
def test_history_is_bounded_in_number_and_bytes(
    open_page: Open, sizes: list[int], most: int, most_bytes: int, left: list[int]
):
    page, _ = open_page()
    keep = """async ([sizes, most, mostBytes]) => {
        const { keep, kept } = await import("/history.js");
        const gone = [];
        for (const [i, bytes] of sizes.entries()) gone.push(...await keep({ id: [i], bytes }, most, mostBytes));
        return [(await kept()).map(({ id }) => id[0]), gone.map(([id]) => id)];
    }"""
    found, gone = page.evaluate(keep, [sizes, most, most_bytes])
    assert found == left
    assert sorted(gone) == sorted(set(range(len(sizes))) - set(left))


def test_large_pictures_are_kept_by_name_alone(open_page: Open):
    page, _ = open_page()
    drop(page, file_of("large.png"), padding=5 * 2**20)
    generate(page, "star")
    expect(page.get_by_role("button", name="Vary star")).to_be_visible()
    kept(page)
    page.reload()
    expect(page.get_by_role("button", name="Reuse the settings of star")).to_be_visible()
    expect(page.get_by_role("button", name="Vary star")).not_to_be_visible()
    page.get_by_role("button", name="Reuse the settings of star").click()
    expect(problem(page)).to_have_text("It was made from large.png: choose that again.")
    expect(thumbs(page)).to_have_count(0)


URLS = """
window.urls = new Set();
const { createObjectURL, revokeObjectURL } = URL;
URL.createObjectURL = (file) => { const url = createObjectURL(file); window.urls.add(url); return url; };
URL.revokeObjectURL = (url) => { window.urls.delete(url); revokeObjectURL(url); };
"""


def test_a_picture_that_is_gone_holds_no_memory(open_page: Open):
    page, _ = open_page(script=URLS)
    choose(page, file_of("one.png"))
    begin(page, "star", count=3)
    expect(figures(page)).to_have_count(3)
    page.get_by_role("button", name="Remove one.png").click()
    assert page.evaluate("window.urls.size") >= 3, "each picture that is shown has one"
    page.get_by_role("button", name=re.compile("^Delete star")).first.click()
    page.get_by_role("button", name="Delete all", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Delete all").click()
    expect(figures(page)).to_have_count(0)
    assert page.evaluate("[...window.urls]") == []


# Browsers that keep nothing


NONE = {
    "no database": "delete window.indexedDB; Object.defineProperty(window, 'indexedDB', { value: undefined });",
    "a forbidden one": """Object.defineProperty(window, "indexedDB", {
        get() { throw new DOMException("denied", "SecurityError"); } });""",
    "one that does not open": """IDBFactory.prototype.open = () => {
        throw new DOMException("private", "InvalidStateError"); };""",
    "one without room": """IDBObjectStore.prototype.put = () => {
        throw new DOMException("full", "QuotaExceededError"); };""",
}


@pytest.mark.parametrize("kind", NONE)
def test_a_browser_that_keeps_nothing_is_told_about(open_page: Open, kind: str):
    page, _ = open_page(script=NONE[kind])
    if kind != "one without room":
        expect(page.locator("#kept")).to_have_text(KEPT_NOTHING)
    begin(page, "star", count=2)
    expect(figures(page)).to_have_count(2)
    expect(page.locator("#kept")).to_have_text(KEPT_NOTHING)
    page.get_by_role("button", name=re.compile("^Delete star")).first.click()
    expect(figures(page)).to_have_count(1)
    page.get_by_role("button", name="Delete all", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Delete all").click()
    expect(figures(page)).to_have_count(0)
