"""The page for everybody, in a headless Chromium: axe in each of its states, and what axe does not see."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.axe import SOURCE, Axe
from tests.support.axe_states import STATES, state
from tests.support.browser import needs_chromium, shoot
from tests.support.npm import check_pinned
from tests.support.page import Open, pages_at_fronts

pytestmark = needs_chromium

WINDOWS = [(1440, "light"), (1440, "dark"), (320, "light"), (320, "dark")]


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> Axe:
    return Axe(tmp_path_factory.mktemp("axe") / "axe_npm")


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    with pages_at_fronts(browser) as opened:
        yield opened


def test_axe_is_pinned():
    check_pinned(SOURCE, "axe-core")


@pytest.mark.network
@pytest.mark.parametrize("name", STATES)
def test_axe_finds_nothing(open_page: Open, axe: Axe, name: str):
    page, front = state(open_page, name)
    for width, scheme in WINDOWS:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.evaluate("scrollTo(0, 0)")  # what lies under the bar that stays on top is no smaller for it
        shoot(page, f"{name}-{width}-{scheme}")
        assert axe.violations(page) == [], f"{width} {scheme}"
        assert page.evaluate("document.documentElement.scrollWidth") == width
    front.gate.set()


@pytest.mark.network
def test_axe_would_find_something(open_page: Open, axe: Axe):
    page, _ = open_page()
    page.evaluate("document.querySelector('#generate').textContent = ''")
    assert [each.partition(":")[0] for each in axe.violations(page)] == ["button-name"]


# Names

ROLES = {"button", "link", "textbox", "spinbutton", "slider", "combobox", "checkbox", "radio", "progressbar", "image"}
ROLES |= {"DisclosureTriangle", "Video"}


@pytest.mark.parametrize("name", STATES)
def test_every_control_has_a_name_of_its_own(open_page: Open, name: str):
    page, front = state(open_page, name)
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")
    nodes = [each for each in tree["nodes"] if not each["ignored"] and each["role"]["value"] in ROLES]
    names = [(each["role"]["value"], each["name"]["value"].strip()) for each in nodes]
    assert len(names) > 1
    assert not [each for each in names if not each[1]]
    assert sorted(set(names)) == sorted(names)
    front.gate.set()


# The keyboard

CONTROLS = """() => {
  const all = [...document.querySelectorAll("a[href], button, input, select, textarea, summary")];
  const reached = (each) => each.checkVisibility() && !each.matches(":disabled") && each.tabIndex >= 0
    && (each.type !== "radio" || each.checked);
  return all.filter(reached).map((each, i) => { each.dataset.place = i; return each.outerHTML.slice(0, 80); });
}"""


@pytest.mark.parametrize("name", ["empty", "filled", "running", "done", "failed"])
def test_the_tabulator_reaches_everything_in_its_order(open_page: Open, name: str):
    page, front = state(open_page, name)
    controls = page.evaluate(CONTROLS)
    page.evaluate("document.activeElement.blur()")
    page.evaluate("document.body.tabIndex = -1; document.body.focus()")
    reached = []
    for _ in controls:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.dataset.place"))
    assert [controls[int(place)] for place in reached if place is not None] == controls
    front.gate.set()


WATCH_FOCUS = """
window.lost = 0;
const look = () => {
  if (document.activeElement === document.body) window.lost += 1;
  requestAnimationFrame(look);
};
addEventListener("load", look);
"""


def press(page: Page, key: str) -> None:
    """Presses a key, and waits until the browser has drawn what follows."""
    page.keyboard.press(key)
    page.evaluate("() => new Promise((end) => requestAnimationFrame(() => requestAnimationFrame(end)))")


def tab_to(page: Page, name: str, key: str = "Tab") -> None:
    """Presses the tabulator until the control of a name has the focus."""
    for _ in range(80):
        page.keyboard.press(key)
        active = page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.textContent.trim()")
        if re.match(name, active):
            return
    raise AssertionError(f"{name} is not reached")


def test_a_visit_by_keyboard_alone_never_loses_the_focus(open_page: Open):
    page, front = open_page(script=WATCH_FOCUS)
    done = page.locator("figure.done")
    page.keyboard.type("star")
    tab_to(page, "Steps, as a slider")
    page.keyboard.press("ArrowRight")
    press(page, "Control+Enter")
    expect(done).to_have_count(1)
    for name in ("Vary star", "Cancel star"):
        front.gate.clear()
        tab_to(page, name) if name == "Vary star" else tab_to(page, name, "Shift+Tab")
        press(page, "Enter")
    front.gate.set()
    expect(page.locator("figure.cancelled")).to_have_count(1)
    tab_to(page, "Delete star", "Tab")
    press(page, "Enter")
    expect(page.locator("figure")).to_have_count(1)
    tab_to(page, "Enlarge star", "Shift+Tab")
    press(page, "Enter")
    press(page, "Escape")
    tab_to(page, "Send to edit: star")
    press(page, "Enter")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    tab_to(page, "Remove star")
    press(page, "Enter")
    expect(page.get_by_role("button", name="Choose a picture")).to_be_focused()
    tab_to(page, "Reuse the settings of star")
    press(page, "Enter")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    tab_to(page, "Delete all")
    press(page, "Enter")
    page.keyboard.press("Tab")
    press(page, "Enter")
    expect(page.locator("figure")).to_have_count(0)
    expect(page.get_by_role("button", name="Generate")).to_be_focused()
    assert page.evaluate("window.lost") == 0
