"""A picture that the page makes, takes as its input and edits under a mask: the real front, Triton and Chromium."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support.browser import Pages, needs_chromium, shoot
from tests.support.front import running_front
from tests.support.page import begin, drag, draw_mask, saved, thumbs
from tests.support.serving import Triton

pytestmark = needs_chromium

FIRST, SECOND = "red apple, 3d", "sunflower, noto"
SIDE = 64  # pixels of the model's pictures
# Columns, 8 pixels away from the border between the two, which the autoencoder blurs.
PAINTED, KEPT = slice(0, 24), slice(40, 64)
AMID_PAINTED = np.s_[16:32, 8:24]  # where the slider's handle, the words and the frame's border are not


@pytest.fixture(scope="module")
def url(triton: Triton) -> Iterator[str]:
    with running_front(triton.grpc_url, default_model="emoji") as url:
        yield url


@pytest.fixture
def open_page(browser: Browser, url: str) -> Iterator[Callable[[int], Page]]:
    """Opens the page in a window of some width."""
    pages = Pages(browser)
    yield lambda width: pages.open(url, width, 900)
    pages.close()
    assert not pages.problems


def made(page: Page, prompt: str, results: int) -> np.ndarray:
    """(64, 64, 3) uint8: what the form makes of a prompt; the page then has so many results."""
    begin(page, prompt, Seed=7)
    expect(page.locator("figure.done")).to_have_count(results, timeout=60_000)
    return pixels(saved(page, prompt)[1])


def pixels(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def seen(frame: Locator) -> np.ndarray:
    """(64, 64, 3) uint8: what a frame of the page shows, at the size of the picture in it."""
    shown = Image.fromarray(pixels(frame.screenshot()))
    return np.asarray(shown.resize((SIDE, SIDE), Image.Resampling.BOX))


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The mean distance of two pictures, in levels of 255."""
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


@pytest.mark.parametrize("width", [375, 1440])
def test_a_result_is_edited_under_a_mask_and_compared(open_page: Callable[[int], Page], width: int):
    page = open_page(width)
    page.evaluate("document.querySelector('#settings').open = true")  # in narrow windows it is closed at first
    before = made(page, FIRST, results=1)
    page.get_by_role("button", name=f"Send to edit: {FIRST}").click()
    expect(thumbs(page)).to_have_count(1)
    page.get_by_role("slider", name="Strength").fill("0.9")
    drag(page, draw_mask(page, brush=50), (0.25, 0.02), (0.25, 0.98))  # half as wide as the picture: its left half
    after = made(page, SECOND, results=2)
    shoot(page, f"edited-{width}")
    # What is kept has been through the autoencoder, which moves it by 0.9 levels; what is painted is 65 away.
    assert distance(before[:, KEPT], after[:, KEPT]) < 2
    assert distance(before[:, PAINTED], after[:, PAINTED]) > 30
    expect(page.locator(".done .state").first).to_contain_text("12 of 45 steps full")
    check_comparison(page, before[AMID_PAINTED], after[AMID_PAINTED])
    assert page.evaluate("document.documentElement.scrollWidth") == width


def check_comparison(page: Page, before: np.ndarray, after: np.ndarray) -> None:
    """With the keyboard the slider shows the one picture, the other, and both.

    Mean colours are compared: the browser scales the pictures and `seen` does once more, which moves them by 5 levels
    of 255; the two pictures are 124 apart.
    """
    frame, slider = page.locator(".compared"), page.get_by_role("slider", name=f"Before and after: {SECOND}")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(slider).to_have_attribute("aria-valuetext", "49 % before, 51 % after")
    for key, picture, told in (("Home", after, "0 % before, 100 % after"), ("End", before, "100 % before, 0 % after")):
        page.keyboard.press(key)
        expect(slider).to_have_attribute("aria-valuetext", told)
        assert np.abs(seen(frame)[AMID_PAINTED].mean((0, 1)) - picture.mean((0, 1))).max() < 10, key
        shoot(page, f"compared-{page.viewport_size['width']}-{key}")
