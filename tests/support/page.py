"""The page at a pretended front, and what a test does with the pictures of its form."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support.browser import Pages
from tests.support.pretend_front import PretendFront, pretend_front, task

SIZE = WIDTH, HEIGHT = 400, 300
# As a FLUX.1 model tells of its tasks; with one picture for a request.
FLUX = [task(0, 0), task(1, 1, strength=0.6), task(1, 1, mask=True, strength=0.85)]

Opened = tuple[Page, PretendFront]
Open = Callable[..., Opened]


@contextmanager
def pages_at_fronts(browser: Browser) -> Iterator[Open]:
    """Opens the page at a front of one model or several: name -> its tasks."""
    pages = Pages(browser)
    with ExitStack() as stack:

        def opened(models: Any = None, *, parameters: Any = None, refusal: str | None = None, **window: Any) -> Opened:
            url, front = stack.enter_context(pretend_front(models or {"flux": FLUX}, parameters, refusal))
            page = pages.open(url, **window)
            page.evaluate("document.querySelector('#settings').open = true")  # in narrow windows it is closed at first
            page.set_default_timeout(10_000)
            expect(page.locator("#server")).to_have_text(re.compile("ready"))
            return page, front

        yield opened
        pages.close()
    assert not pages.problems


def picture(size: tuple[int, int] = SIZE) -> Image.Image:
    """A ball before a sky: every part differs from its neighbours."""
    width, height = size
    sky = Image.linear_gradient("L").resize(size)
    image = Image.merge("RGB", (sky, sky.point(lambda value: 120 + value // 3), Image.new("L", size, 200)))
    ImageDraw.Draw(image).ellipse((width * 0.55, height * 0.3, width * 0.85, height * 0.8), fill="tomato")
    return image


def file_of(name: str, image: Image.Image | None = None, **options: Any) -> dict[str, Any]:
    """A file as Playwright has it."""
    kind = {"jpg": "jpeg"}.get(name.rpartition(".")[2], name.rpartition(".")[2])
    content = io.BytesIO()
    (image or picture()).save(content, kind, **options)
    return {"name": name, "mimeType": f"image/{kind}", "buffer": content.getvalue()}


TRANSFER = """async (files) => {
  const transfer = new DataTransfer();
  for (const [name, type, base64, padding] of files) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes, new Uint8Array(padding)], name, { type }));
  }
  return transfer;
}"""


def transfer_of(page: Page, *files: dict[str, Any], padding: int = 0) -> Any:
    """What a browser hands over where files are dropped, each with bytes behind its end."""
    told = [[each["name"], each["mimeType"], base64.b64encode(each["buffer"]).decode(), padding] for each in files]
    return page.evaluate_handle(TRANSFER, told)


def drop(page: Page, *files: dict[str, Any], padding: int = 0) -> None:
    page.dispatch_event("#form", "drop", {"dataTransfer": transfer_of(page, *files, padding=padding)})


def choose(page: Page, *files: dict[str, Any]) -> None:
    page.locator("#files").set_input_files(files)


def thumbs(page: Page) -> Locator:
    return page.get_by_role("list", name="Pictures in the form").get_by_role("img")


def begin(page: Page, prompt: str, count: int = 1, **fields: object) -> None:
    """Sends the form with some of its fields, by their labels."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("spinbutton", name="Pictures").fill(str(count))
    for label, value in fields.items():
        page.get_by_label(label, exact=True).fill(str(value))
    page.get_by_role("button", name="Generate").click()


def generate(page: Page, prompt: str = "a red apple", pictures: int = 1) -> None:
    """Sends the form, and waits until there are so many results."""
    begin(page, prompt)
    expect(page.locator("figure.done")).to_have_count(pictures)


def compare_caches(page: Page) -> None:
    page.get_by_label("Also with the cache off").check()


def saved(page: Page, title: str | re.Pattern[str] = "") -> tuple[str, bytes]:
    """The name and the content of the file that the button of a picture gives."""
    name = title if isinstance(title, re.Pattern) else f"Save {title}"
    with page.expect_download() as download:
        page.get_by_role("link", name=name).first.click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def kept(page: Page) -> None:
    """Waits until what is shown is kept: nothing on the page tells of it."""
    count = "import('/history.js').then(({ kept }) => kept()).then((all) => all.length)"
    shown = page.locator("figure.done").count()
    for _ in range(100):
        if page.evaluate(count) == shown:
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"{page.evaluate(count)} of {shown} pictures are kept")


def problem(page: Page) -> Locator:
    return page.locator("#problem")


def begin_mask(page: Page, file: dict[str, Any] | None = None, brush: int = 10) -> dict[str, float]:
    """Puts a picture into the form, and returns as `draw_mask` does."""
    choose(page, file or file_of("one.png"))
    return draw_mask(page, brush)


def draw_mask(page: Page, brush: int) -> dict[str, float]:
    """The box of the canvas, in the window, once it can be drawn on."""
    page.get_by_role("button", name="Draw a mask").click()
    page.get_by_role("slider", name="Brush").fill(str(brush))
    canvas = page.locator("canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box
    return box


def drag(page: Page, box: dict[str, float], *places: tuple[float, float]) -> None:
    """Draws with the mouse between places, each a part of the picture's width and height."""
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=5)
    page.mouse.up()
