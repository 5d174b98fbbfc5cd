"""Masks that are drawn on the page in a headless Chromium, with the mouse, a finger or the keyboard, and then sent."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import needs_chromium
from tests.support.page import (
    HEIGHT,
    SIZE,
    WIDTH,
    Open,
    begin_mask,
    choose,
    drag,
    file_of,
    generate,
    pages_at_fronts,
    picture,
    problem,
)
from tests.support.pretend_front import PretendFront

pytestmark = needs_chromium

ORIENTATION = 0x0112  # the EXIF tag


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    with pages_at_fronts(browser) as opened:
        yield opened


def swipe(page: Page, box: dict[str, float], start: tuple[float, float], end: tuple[float, float]) -> None:
    """The same with one finger."""
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *parts: tuple[float, float]) -> None:
        points = [{"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]} for x, y in parts]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", start)
    for part in np.linspace(start, end, 9)[1:]:
        touch("touchMove", tuple(part))
    touch("touchEnd")


def sent_mask(front: PretendFront) -> np.ndarray:
    """Where the last request's mask is transparent; its alpha has two values only."""
    (file,) = front.asked[-1].files["mask"]
    assert file.content.startswith(b"\x89PNG")
    assert file.image.mode == "RGBA"
    alpha = np.asarray(file.image)[..., 3]
    assert set(np.unique(alpha)) <= {0, 255}
    return alpha == 0


def near_line(size: tuple[int, int], start: tuple[float, float], end: tuple[float, float]) -> np.ndarray:
    """Each pixel's distance from a line between two places of a picture."""
    (width, height), (ax, ay), (bx, by) = size, start, end
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    a, b = np.array([ax * width, ay * height]), np.array([bx * width, by * height])
    along = np.clip(((x - a[0]) * (b[0] - a[0]) + (y - a[1]) * (b[1] - a[1])) / ((b - a) ** 2).sum(), 0, 1)
    return np.hypot(x - a[0] - along * (b[0] - a[0]), y - a[1] - along * (b[1] - a[1]))


def assert_is_stroke(masked: np.ndarray, start: tuple[float, float], end: tuple[float, float], brush: float) -> None:
    """Within half a brush of the line it is masked, beyond it is not; two pixels for what a window's pixels round."""
    away = near_line((masked.shape[1], masked.shape[0]), start, end)
    assert masked[away < brush / 2 - 2].all()
    assert not masked[away > brush / 2 + 2].any()


@pytest.mark.parametrize("finger", [False, True])
@pytest.mark.parametrize("size", [SIZE, (1500, 2000)])
def test_a_drawn_mask_is_transparent_where_it_was_drawn(open_page: Open, finger: bool, size: tuple[int, int]):
    page, front = open_page(width=375, height=812, has_touch=finger)
    box = begin_mask(page, file_of("one.png", picture(size)), brush=20)
    start, end = (0.2, 0.3), (0.8, 0.6)
    top = page.evaluate("scrollY")
    (swipe if finger else drag)(page, box, start, end)
    assert page.evaluate("scrollY") == top, "a finger draws, and does not scroll"
    generate(page)
    masked = sent_mask(front)
    assert masked.shape[::-1] == size
    assert_is_stroke(masked, start, end, 0.2 * min(size))


def test_a_finger_scrolls_over_the_picture_unless_it_draws(open_page: Open):
    page, _ = open_page(width=375, height=500, has_touch=True)
    box = begin_mask(page)
    drag(page, box, (0.5, 0.5), (0.6, 0.5))
    canvas = page.locator("canvas")
    assert canvas.evaluate("each => getComputedStyle(each).touchAction") == "none"
    page.get_by_role("button", name="Done with the mask").click()
    expect(canvas).to_be_visible()
    assert canvas.evaluate("each => getComputedStyle(each).touchAction") == "auto"
    expect(page.get_by_role("button", name="Undo")).not_to_be_visible()
    expect(page.get_by_role("button", name="Change the mask")).to_be_focused()


def test_strokes_are_undone_and_the_mask_is_inverted_and_cleared(open_page: Open):
    page, front = open_page()
    box = begin_mask(page)
    places = [((0.1, 0.1), (0.9, 0.1)), ((0.1, 0.8), (0.9, 0.8))]
    for start, end in places:
        drag(page, box, start, end)
    page.get_by_role("button", name="Undo").click()
    generate(page)
    assert_is_stroke(sent_mask(front), *places[0], 0.1 * HEIGHT)
    page.get_by_role("button", name="Invert").click()
    generate(page, pictures=2)
    assert_is_stroke(~sent_mask(front), *places[0], 0.1 * HEIGHT)
    page.get_by_role("button", name="Clear").click()
    generate(page, pictures=3)
    assert "mask" not in front.asked[-1].files, "an empty mask is none"
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Undo").click()
    generate(page, pictures=4)
    assert_is_stroke(sent_mask(front), *places[0], 0.1 * HEIGHT)
    for news in ("The last mark is undone", "There is nothing to undo"):
        page.get_by_role("button", name="Undo").click()
        expect(page.locator("#news")).to_have_text(news)


def test_a_mask_that_the_browser_has_no_room_for_is_told(open_page: Open):
    page, front = open_page()
    begin_mask(page)
    page.get_by_role("button", name="Mask all").click()
    page.evaluate("""HTMLCanvasElement.prototype.toDataURL = () => "data:,";""")
    page.get_by_label("Prompt", exact=True).fill("star")
    page.get_by_role("button", name="Generate").click()
    expect(problem(page)).to_have_text("This browser cannot make a mask of 400 x 300 pixels.")
    assert not front.asked


def test_a_mask_is_made_with_the_keyboard_alone(open_page: Open):
    page, front = open_page()
    choose(page, file_of("one.png"))
    page.get_by_role("button", name="Draw a mask").press("Enter")
    page.get_by_text("Mask a rectangle").press("Enter")
    values = {"From left": 40, "From top": 30, "Rectangle's width": 100, "Rectangle's height": 2000}
    for label, value in values.items():
        page.get_by_label(label).fill(str(value))
    page.keyboard.press("Enter")
    expect(
        page.get_by_label("Rectangle's height")
    ).to_be_focused()  # the picture is not as high, which the browser says
    page.get_by_label("Rectangle's height").fill("50")
    page.keyboard.press("Enter")
    expect(page.locator("#news")).to_have_text("The rectangle is masked")
    assert not front.asked, "Enter in the rectangle's fields sends nothing"
    generate(page)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[30:80, 40:140] = True
    assert np.array_equal(sent_mask(front), expected)
    page.get_by_role("button", name="Mask all").press("Space")
    generate(page, pictures=2)
    assert sent_mask(front).all()


def test_another_picture_begins_without_a_mask(open_page: Open):
    page, front = open_page()
    begin_mask(page)
    page.get_by_role("button", name="Mask all").click()
    choose(page, file_of("two.png", picture((64, 96))))
    expect(page.get_by_role("button", name="Draw a mask")).to_be_visible()
    generate(page)
    assert front.asked[0].files.keys() == {"image"}


def test_picture_and_mask_agree_about_what_is_upright(open_page: Open):
    lying = Image.Exif()
    lying[ORIENTATION] = 6  # the camera was turned: upright it is 300 wide and 400 high
    page, front = open_page()
    box = begin_mask(page, file_of("photo.jpg", exif=lying))
    assert box["width"] / box["height"] == pytest.approx(300 / 400, rel=0.01)
    assert page.locator(".masked img").evaluate("each => [each.naturalWidth, each.naturalHeight]") == [300, 400]
    expect(page.get_by_label("Width", exact=True)).to_have_attribute("placeholder", "300")
    drag(page, box, (0.1, 0.1), (0.9, 0.1))
    generate(page)
    assert front.asked[0].files["mask"][0].image.size == (300, 400)
    assert_is_stroke(sent_mask(front), (0.1, 0.1), (0.9, 0.1), 0.1 * 300)
