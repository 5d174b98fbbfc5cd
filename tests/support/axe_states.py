"""The states of the page that must be open to everybody."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.support.page import (
    Open,
    Opened,
    begin,
    begin_mask,
    choose,
    compare_caches,
    drag,
    file_of,
    kept,
    problem,
    saved,
)
from tests.support.pretend_front import PretendFront

_EXAMPLES = {"examples": "red apple, 3d\ntiger face, twemoji\nsunflower, noto\npizza, flat"}
_PROMPT = "a ball before a sky,\npainted in oil on a wet morning"


def state(open_page: Open, name: str) -> Opened:
    """The page and its front in a state; the front's gate may be closed."""
    page, front = open_page(parameters=_EXAMPLES)
    STATES[name](page, front)
    page.mouse.move(0, 0)
    return page, front


def _empty(page: Page, _: PretendFront) -> None:
    expect(page.get_by_text("Your pictures appear here.")).to_be_visible()


def _filled(page: Page, _: PretendFront) -> None:
    """All that the form can show: settings that are offered, a picture, a mask, a problem."""
    begin(page, "star", Seed=7)
    expect(page.locator("figure.done")).to_have_count(1)
    name, content = saved(page)
    page.get_by_role("button", name="Delete star").click()
    box = begin_mask(page, {"name": name, "mimeType": "image/png", "buffer": content})
    drag(page, box, (0.2, 0.3), (0.8, 0.6))
    page.get_by_text("Mask a rectangle").click()
    page.get_by_text("Cache and more").click()
    begin(page, _PROMPT, Seed=2**63)
    expect(problem(page)).to_be_visible()


def _running(page: Page, front: PretendFront) -> None:
    front.gate.clear()
    begin(page, _PROMPT, count=5, Seed=7)
    expect(page.get_by_text("step 1 of 8")).to_have_count(4)


def _done(page: Page, _: PretendFront) -> None:
    begin(page, _PROMPT, count=2, Seed=7)
    expect(page.locator("figure.done")).to_have_count(2)
    choose(page, file_of("one.png"))
    begin(page, "the same in other colours")
    expect(page.locator("figure.done")).to_have_count(3)
    page.get_by_role("button", name="Remove one.png").click()
    compare_caches(page)
    begin(page, "star")
    expect(page.locator(".verdict")).to_be_visible()
    page.locator("figure summary").last.click()


def _failed(page: Page, front: PretendFront) -> None:
    front.full, front.retry_after_s = 1, 60
    begin(page, "star")
    expect(page.locator("figure.failed")).to_have_count(1)
    front.gate.clear()
    begin(page, "moon")
    page.get_by_role("button", name="Cancel moon").click()
    front.gate.set()


def _history(page: Page, front: PretendFront) -> None:
    _done(page, front)
    kept(page)
    page.reload()
    expect(page.locator("figure.done")).to_have_count(5)


def _key(page: Page, _: PretendFront) -> None:
    """The dialog as a wrong key leaves it; a test at the real front types one."""
    page.evaluate("""() => {
        const dialog = document.querySelector("#key");
        dialog.showModal();
        dialog.querySelector("[role=alert]").textContent = "The server does not accept this key.";
    }""")


def _sure(page: Page, _: PretendFront) -> None:
    begin(page, "star", count=2)
    expect(page.locator("figure.done")).to_have_count(2)
    page.get_by_role("button", name="Delete all").click()


def _large(page: Page, _: PretendFront) -> None:
    begin(page, "star")
    expect(page.locator("figure.done")).to_have_count(1)
    page.get_by_role("button", name="Enlarge star").focus()
    page.keyboard.press("Enter")


STATES: dict[str, Callable[[Page, PretendFront], None]] = {
    "empty": _empty,
    "filled": _filled,
    "running": _running,
    "done": _done,
    "failed": _failed,
    "history": _history,
    "key": _key,
    "sure": _sure,
    "large": _large,
}
