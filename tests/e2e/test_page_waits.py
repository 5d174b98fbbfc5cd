"""What the page says while a server has no room, and when the connection is lost, in a headless Chromium."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.support.browser import needs_chromium
from tests.support.page import Open, begin, generate, pages_at_fronts
from tests.support.pretend_front import FULL

pytestmark = needs_chromium

STATES = """
window.states = [];
new MutationObserver(() => {
  const state = document.querySelector(".state")?.textContent;
  if (state && state !== window.states.at(-1)) window.states.push(state);
}).observe(document, { subtree: true, childList: true, characterData: true });
"""
LOST = "The connection ended before the picture was done."


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    with pages_at_fronts(browser) as opened:
        yield opened


def test_the_place_in_the_queue_is_shown(open_page: Open):
    page, front = open_page(script=STATES)
    front.places = (112, 23, 22, 11, 3, 2, 1)
    generate(page)
    told = [each for each in page.evaluate("window.states") if "queue" in each]
    assert told == [
        *(f"waiting, {place} in the queue" for place in ("112th", "23rd", "22nd", "11th", "3rd", "2nd")),
        "waiting, next in the queue",
    ]


def test_a_full_queue_says_when_to_try_again_and_the_picture_is_sent_then(open_page: Open):
    page, front = open_page()
    front.full, front.retry_after_s = 1, 3
    begin(page, "star", Seed=7)
    state = page.locator(".state")
    expect(state).to_have_text(re.compile(rf"^{re.escape(FULL.partition(':')[0])}: try again in [123] s$"))
    told = time.monotonic()
    page.get_by_role("button", name="Try again: star").click()
    expect(state).to_have_text(re.compile(r"^is sent again in [123] s$"))
    expect(page.get_by_role("button", name="Cancel star")).to_be_focused()
    expect(page.locator("figure.done")).to_have_count(1)
    # The browser heard of it a moment before this test did.
    assert time.monotonic() - told > 2.5
    assert len(front.asked) == 2
    assert front.asked[0] == front.asked[1]


def test_the_time_to_try_again_runs_out_by_itself(open_page: Open):
    page, front = open_page()
    front.full, front.retry_after_s = 2, 1
    begin(page, "star")
    state = page.locator(".state")
    expect(state).to_have_text(f"{FULL.partition(':')[0]}: try again")
    assert len(front.asked) == 1, "nobody asked for it"
    page.get_by_role("button", name="Try again: star").click()
    expect(state).to_have_text(re.compile(r"try again in 1 s$"))
    page.get_by_role("button", name="Try again: star").click()
    page.get_by_role("button", name="Cancel star").click()
    expect(state).to_have_text("cancelled")
    page.wait_for_timeout(1200)
    assert len(front.asked) == 2


def test_a_refusal_without_a_time_is_the_servers_sentence(open_page: Open):
    page, front = open_page()
    front.full = 1
    begin(page, "star")
    expect(page.locator(".state")).to_have_text(FULL)
    page.get_by_role("button", name="Try again: star").click()
    expect(page.locator("figure.done")).to_have_count(1)


def test_a_connection_that_breaks_is_a_sentence_and_can_be_tried_again(open_page: Open):
    page, front = open_page()
    front.cut = True
    begin(page, "star")
    expect(page.locator(".failed .state")).to_have_text(LOST)
    front.cut = False
    page.get_by_role("button", name="Try again: star").click()
    expect(page.locator("figure.done")).to_have_count(1)


def test_a_connection_that_falls_silent_is_given_up(open_page: Open):
    page, front = open_page()
    page.clock.install()
    front.gate.clear()
    begin(page, "star")
    expect(page.locator(".state")).to_have_text("step 1 of 8")
    page.clock.run_for(58_000)
    expect(page.locator(".state")).to_have_text("step 1 of 8")
    page.clock.run_for(3_000)
    expect(page.locator(".failed .state")).to_have_text(LOST)
    front.gate.set()


def test_a_server_that_is_gone_is_a_sentence(open_page: Open):
    page, _ = open_page()
    page.route("**/v1/images/**", lambda route: route.abort())
    begin(page, "star")
    expect(page.locator(".failed .state")).to_have_text("The server cannot be reached.")
    page.unroute("**/v1/images/**")
    page.get_by_role("button", name="Try again: star").click()
    expect(page.locator("figure.done")).to_have_count(1)
