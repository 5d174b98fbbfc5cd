"""What is heard of the page, how it looks to those who see little, and how light it is."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from clients.openai_api.app import WEB
from tests.support.axe_states import STATES, state
from tests.support.browser import needs_chromium, shoot
from tests.support.page import Open, begin, choose, compare_caches, file_of, pages_at_fronts

pytestmark = needs_chromium

MOST_BYTES = 150_000
MOST_ANNOUNCEMENTS = 5  # of a picture
SMALLEST_TARGET = 24  # pixels of CSS, WCAG 2.2's 2.5.8


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    with pages_at_fronts(browser) as opened:
        yield opened


# What is heard

# Counts what a screen reader would read out: each change of a live region.
LISTEN = """
window.heard = [];
const live = "[role=status], [role=alert], [aria-live]";
new MutationObserver((changes) => {
  const elements = changes.map(({ target }) => (target.nodeType === Node.TEXT_NODE ? target.parentElement : target));
  const regions = elements.map((each) => each?.closest(live));
  for (const region of new Set(regions.filter(Boolean))) if (region.innerText) window.heard.push(region.innerText);
}).observe(document.body, { subtree: true, childList: true, characterData: true });
"""
SLOW = 0.08  # seconds of a step, so that there is time to hear each message
DONE = "done, 0.50 s, 1 of 8 steps full"


def heard(page: Page, pictures: int) -> list[str]:
    """What is heard from now on until there are so many pictures, once the form is sent."""
    page.evaluate("window.heard = []")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("figure.done")).to_have_count(pictures)
    page.wait_for_timeout(pictures * 250)  # they are told one after the other
    return page.evaluate("window.heard")


def test_a_picture_is_heard_at_most_five_times(open_page: Open):
    page, front = open_page()
    page.evaluate(LISTEN)
    front.step_s = SLOW
    begin(page, "star", Seed=7)
    expect(page.locator("figure.done")).to_have_count(1)
    front.places = (3, 2, 1)
    told = heard(page, pictures=2)
    assert len(told) <= MOST_ANNOUNCEMENTS
    assert told == [
        "star, seed 7 (2): started",
        "star, seed 7 (2): waiting, 3rd in the queue",
        "star, seed 7 (2): 50 %",
        f"star, seed 7 (2): {DONE}",
    ]


def test_a_batch_is_heard_once_for_each_picture_and_at_its_start(open_page: Open):
    page, front = open_page()
    page.evaluate(LISTEN)
    front.places = (5, 4)
    page.get_by_label("Prompt", exact=True).fill("star")
    page.get_by_label("Seed", exact=True).fill("5")
    page.get_by_role("spinbutton", name="Pictures").fill("6")
    start, place, *ends = heard(page, pictures=6)
    assert start == "6 pictures are started"
    assert place.endswith("waiting, 5th in the queue")
    assert [each.rpartition("; ")[2] for each in ends] == [f"{number} of 6" for number in range(1, 7)]
    assert {each.partition(":")[0] for each in ends} == {f"star, seed {seed}" for seed in range(5, 11)}


def test_a_comparison_is_heard_with_its_numbers(open_page: Open):
    page, front = open_page()
    page.evaluate(LISTEN)
    front.step_s = SLOW
    page.get_by_label("Prompt", exact=True).fill("star")
    page.get_by_label("Seed", exact=True).fill("7")
    compare_caches(page)
    told = heard(page, pictures=2)
    assert len(told) <= 2 * MOST_ANNOUNCEMENTS
    assert told == [
        "star, cache off, seed 7: started",
        "star, cache off, seed 7: 50 %",
        "star, cache off, seed 7: done, 0.50 s, 8 of 8 steps full",
        "star, cache on, seed 7: started",
        "star, cache on, seed 7: 50 %",
        f"star, cache on, seed 7: {DONE}. "
        "Denoised in 0.10 s in place of 0.40 s, 4.0 times as fast; identical to the uncached picture.",
    ]


def test_what_is_over_before_it_is_heard_is_left_out(open_page: Open):
    page, front = open_page()
    page.evaluate(LISTEN)
    front.step_s = 0
    page.get_by_label("Prompt", exact=True).fill("star")
    page.get_by_label("Seed", exact=True).fill("7")
    assert heard(page, pictures=1) == ["star, seed 7: started", f"star, seed 7: {DONE}"]


def test_what_goes_wrong_is_heard_once(open_page: Open):
    page, front = open_page()
    page.evaluate(LISTEN)
    front.full, front.retry_after_s = 1, 2
    begin(page, "star", Seed=7)
    expect(page.locator(".state")).to_have_text(re.compile("try again$"), timeout=5000)
    told = page.evaluate("window.heard")
    assert [each.partition(":")[2] for each in told[:1]] == [" started"]
    assert len(told) == 2, "the seconds that run out are seen, and not heard"
    assert told[1].endswith("try again in 2 s")


# What is seen


@pytest.mark.parametrize("width", [320, 640, 1000, 1440])
@pytest.mark.parametrize("name", ["filled", "done", "failed", "sure"])
def test_text_of_twice_the_size_needs_no_scrolling_aside(open_page: Open, name: str, width: int):
    page, _ = state(open_page, name)
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("document.documentElement.style.fontSize = '200%'")
    shoot(page, f"text-{name}-{width}")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    cut = """(all) => all.filter((each) => each.checkVisibility() && each.scrollWidth > each.clientWidth + 1)
        .map((each) => each.outerHTML.slice(0, 80))"""
    assert page.locator("button, .save, label, summary, #form, dialog").evaluate_all(cut) == []


TARGETS = """(least) => [...document.querySelectorAll("a[href], button, input, select, textarea, summary")]
  .filter((each) => each.checkVisibility())
  .map((each) => (["checkbox", "radio"].includes(each.type) ? each.closest("label") : each))
  .filter((each) => Math.min(each.getBoundingClientRect().width, each.getBoundingClientRect().height) < least)
  .map((each) => each.outerHTML.slice(0, 80))"""


@pytest.mark.parametrize("name", STATES)
def test_targets_are_large_enough_for_a_finger(open_page: Open, name: str):
    page, front = state(open_page, name)
    for width in (320, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(TARGETS, SMALLEST_TARGET) == []
    front.gate.set()


def luminance(colour: str) -> float:
    """The relative luminance of WCAG 2.2, from 0 to 1, of an opaque colour as a browser tells it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)]
    assert len(parts) == 3
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


COLOURS = """(names) => {
  const probe = document.body.appendChild(document.createElement("i"));
  return names.map((name) => { probe.style.color = `var(${name})`; return getComputedStyle(probe).color; });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_edges_and_the_focus_can_be_told_from_what_is_behind_them(open_page: Open, scheme: str):
    """Of non-text contrast, which axe does not measure, WCAG asks for 3 to 1."""
    page, _ = open_page(color_scheme=scheme)
    names = ("--edge", "--accent", "--panel", "--field", "--ground")
    edge, accent, *behind = page.evaluate(COLOURS, names)
    for colour in behind:
        assert contrast(edge, colour) >= 3
        assert contrast(accent, colour) >= 3


def test_colours_of_the_system_show_what_is_chosen(open_page: Open):
    page, _ = open_page(forced_colors="active")
    choose(page, file_of("one.png"))
    begin(page, "star")
    expect(page.locator("figure.done")).to_have_count(1)
    shoot(page, "forced-colours")
    background = "each => getComputedStyle(each).backgroundColor"
    chosen, other = (page.locator(".shape").nth(place).evaluate(background) for place in (0, 1))
    assert chosen != other
    frame = Image.open(io.BytesIO(page.locator(".compared").screenshot())).convert("RGB")
    knob = frame.getpixel((frame.width // 2, frame.height // 2))
    assert knob == (255, 255, 255), "the slider's knob is a picture, which a browser may leave out"


def test_nothing_moves_for_those_who_want_it_still(open_page: Open):
    page, _ = open_page(reduced_motion="reduce")
    begin(page, "star")
    expect(page.locator("figure.done")).to_have_count(1)
    moving = """() => [...document.querySelectorAll("*")].map((each) => getComputedStyle(each))
        .filter((each) => parseFloat(each.transitionDuration) || each.animationName !== "none").length"""
    assert page.evaluate(moving) == 0
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(moving) > 0


# How light it is


def files() -> list[Path]:
    return sorted(path for path in WEB.rglob("*") if path.is_file())


def test_the_page_is_light():
    assert sum(path.stat().st_size for path in files()) < MOST_BYTES
    assert {path.suffix for path in files()} == {".html", ".css", ".js", ".svg"}


def test_the_page_names_no_other_place():
    """What it loads is held by the tests' browser; names of namespaces are no addresses."""
    namespaces = re.compile(
        r"http://(www\.w3\.org|purl\.org/dc|ns\.adobe\.com|iptc\.org/std|cv\.iptc\.org/newscodes)/", re.IGNORECASE
    )
    for path in files():
        text = namespaces.sub("", path.read_text(encoding="utf-8"))
        assert not re.search(r"(https?:)?//\w+\.\w+", text), path
