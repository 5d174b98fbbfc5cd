"""The page's pictures as inputs, in a headless Chromium: put in, sent, compared with the result, used again."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.support.browser import needs_chromium, shoot
from tests.support.page import (
    FLUX,
    HEIGHT,
    WIDTH,
    Open,
    begin,
    begin_mask,
    choose,
    compare_caches,
    drag,
    drop,
    file_of,
    generate,
    pages_at_fronts,
    picture,
    problem,
    saved,
    thumbs,
    transfer_of,
)
from tests.support.pretend_front import task

pytestmark = needs_chromium

SEVERAL = [task(0, 0), task(1, 3)]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    with pages_at_fronts(browser) as opened:
        yield opened


# Pictures in the form


def test_a_chosen_picture_is_sent_as_it_is(open_page: Open):
    page, front = open_page()
    file = file_of("apple.jpg")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a picture").click()
    chooser.value.set_files([file])
    expect(thumbs(page)).to_have_count(1)
    page.get_by_label("Seed", exact=True).fill(str(2**53 + 1))
    page.get_by_label("Steps", exact=True).fill("12")
    generate(page, "a green, round apple\u2026")
    (asked,) = front.asked
    assert asked.path == "/v1/images/edits"
    assert asked.files.keys() == {"image"}
    assert [(each.name, each.content) for each in asked.files["image"]] == [("apple.jpg", file["buffer"])]
    assert asked.fields == {
        **{"prompt": "a green, round apple\u2026", "model": "flux", "seed": str(2**53 + 1)},
        **{"num_inference_steps": "12", "stream": "true", "progress": "true", "partial_images": "3"},
    }
    assert page.locator(".about").inner_text() == f"from apple.jpg, seed {2**53 + 1}"


def test_pictures_are_dropped_in_their_order_and_removed(open_page: Open):
    page, front = open_page({"kontext": SEVERAL})
    names = ["one.png", "two.jpg", "three.webp"]
    page.dispatch_event("#form", "dragover", {"dataTransfer": transfer_of(page, file_of("one.png"))})
    expect(page.locator("#form")).to_have_class("over")
    drop(page, *map(file_of, names))
    expect(page.locator("#form")).not_to_have_class("over")
    expect(thumbs(page)).to_have_count(3)
    assert thumbs(page).evaluate_all("images => images.map(each => each.alt)") == names
    page.get_by_role("button", name="Remove two.jpg").click()
    expect(page.get_by_role("button", name="Remove three.webp")).to_be_focused()
    generate(page)
    assert [each.name for each in front.asked[0].files["image[]"]] == ["one.png", "three.webp"]
    for name in ("three.webp", "one.png"):
        page.get_by_role("button", name=f"Remove {name}").click()
    expect(page.get_by_role("button", name="Choose pictures")).to_be_focused()
    generate(page, pictures=2)
    assert front.asked[1].path == "/v1/images/generations"
    assert front.asked[1].fields["size"] == "64x48"


def test_a_file_that_is_dropped_beside_the_form_leaves_the_page(open_page: Open):
    page, _ = open_page()
    dropped = page.evaluate(
        """(transfer) => document.body.dispatchEvent(
            new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }))""",
        transfer_of(page, file_of("one.png")),
    )
    assert not dropped, "the browser must not open it in place of the page"
    expect(thumbs(page)).to_have_count(0)


def test_a_picture_is_pasted_and_text_stays_text(open_page: Open):
    page, _ = open_page()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("green apple")
    for key in ("a", "x"):
        page.keyboard.press(f"Control+{key}")
    page.keyboard.press("Control+v")
    expect(prompt).to_have_value("green apple")
    expect(thumbs(page)).to_have_count(0)
    png = base64.b64encode(file_of("one.png")["buffer"]).decode()
    page.evaluate(
        """async (base64) => {
            const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
            const blob = new Blob([bytes], { type: "image/png" });
            await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
        }""",
        png,
    )
    page.keyboard.press("Control+v")
    expect(thumbs(page)).to_have_count(1)
    expect(page.get_by_label("Width", exact=True)).to_have_attribute("placeholder", str(WIDTH))
    expect(prompt).to_have_value("green apple")


def test_where_one_picture_is_taken_the_new_one_replaces_the_old(open_page: Open):
    page, _ = open_page()
    choose(page, file_of("one.png"))
    expect(page.get_by_role("button", name="Remove one.png")).to_be_visible()
    choose(page, file_of("two.png"))
    expect(page.get_by_role("button", name="Remove two.png")).to_be_visible()
    expect(thumbs(page)).to_have_count(1)


def test_what_is_no_picture_is_refused_in_a_sentence(open_page: Open):
    page, _ = open_page({"kontext": SEVERAL})
    gif = file_of("moving.gif")
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\nnothing more"}
    drop(page, gif, broken, file_of("one.png"))
    expect(problem(page)).to_have_text("moving.gif is not a PNG, JPEG or WebP. broken.png cannot be read as a picture.")
    expect(thumbs(page)).to_have_count(1)
    drop(page, file_of("large.png"), padding=20 * 2**20 + 2**18)
    expect(problem(page)).to_have_text("large.png has 20.3 MB, more than 20 MB.")
    choose(page, *(file_of(f"{number}.png") for number in range(3)))
    expect(problem(page)).to_have_text("This model takes at most 3 pictures.")
    expect(thumbs(page)).to_have_count(3)
    for _ in range(3):
        page.get_by_role("button", name="Remove").first.click()
    drop(page, file_of("one.png"), file_of("two.png"), padding=16 * 2**20)
    expect(problem(page)).to_have_text("Together the pictures have 32.0 MB, more than 30 MB.")
    expect(thumbs(page)).to_have_count(0)
    choose(page, file_of("one.png"))
    expect(problem(page)).not_to_be_visible()


# What the models take


@pytest.mark.parametrize("tasks", [None, [], [task(0, 0)]])
def test_a_model_without_tasks_for_pictures_shows_no_controls_of_them(open_page: Open, tasks: Any):
    page, front = open_page({"emoji": tasks, "flux": FLUX})
    expect(page.get_by_role("button", name="Choose a picture")).not_to_be_visible()
    drop(page, file_of("one.png"))
    expect(problem(page)).to_have_text("This model takes no pictures.")
    generate(page)
    expect(page.get_by_role("button", name="Send to edit")).not_to_be_visible()
    page.get_by_label("Model").select_option("flux")
    expect(page.get_by_role("button", name="Send to edit")).to_be_visible()
    choose(page, file_of("one.png"))
    strength = page.get_by_role("slider", name="Strength")
    expect(strength).to_be_visible()
    page.get_by_label("Model").select_option("emoji")
    for control in (thumbs(page), strength, page.get_by_role("button", name="Draw a mask")):
        expect(control).not_to_be_visible()
    expect(page.get_by_label("Width", exact=True)).to_have_attribute("placeholder", "64")
    generate(page, pictures=2)
    assert [each.path for each in front.asked] == ["/v1/images/generations"] * 2


def test_a_model_that_needs_a_picture_says_so(open_page: Open):
    fill, frames = [task(1, 1, mask=True, strength=1.0)], [task(1, 1), task(2, 2)]
    page, front = open_page({"fill": fill, "frames": frames})
    page.get_by_label("Prompt", exact=True).fill("star")
    send = page.get_by_role("button", name="Generate")
    send.click()
    expect(problem(page)).to_have_text("This model needs a picture: choose, drop or paste one.")
    choose(page, file_of("one.png"))
    send.click()
    expect(problem(page)).to_have_text("Draw a mask: this model repaints what it covers.")
    page.get_by_label("Model").select_option("frames")
    choose(page, file_of("two.png"))
    expect(thumbs(page)).to_have_count(2)
    page.get_by_label("Model").select_option("fill")
    send.click()
    expect(problem(page)).to_have_text("This model takes 1 picture, and the form has 2.")
    assert not front.asked


def test_strength_and_size_are_sent_once_they_are_set(open_page: Open):
    page, front = open_page(parameters={"strength": "0.45"})
    strength = page.get_by_role("slider", name="Strength")
    expect(strength).not_to_be_visible()
    choose(page, file_of("one.png"))
    expect(strength).to_have_value("0.45")
    for label, value in (("Width", WIDTH), ("Height", HEIGHT)):
        expect(page.get_by_label(label, exact=True)).to_have_attribute("placeholder", str(value))
    strength.press("ArrowRight")
    expect(page.locator("#strength-number")).to_have_text("0.46")
    page.get_by_label("Width", exact=True).fill("64")
    generate(page)
    page.get_by_label("Height", exact=True).fill("80")
    generate(page, pictures=2)
    one, both = (each.fields for each in front.asked)
    assert one["strength"] == both["strength"] == "0.46"
    assert (one["width"], one.keys() & {"height", "size"}) == ("64", set())
    assert (both["size"], both.keys() & {"width", "height"}) == ("64x80", set())


def test_the_slider_of_strength_shows_the_default_of_the_task_that_fits(open_page: Open):
    page, front = open_page()
    choose(page, file_of("one.png"))
    strength = page.get_by_role("slider", name="Strength")
    expect(strength).to_have_value("0.6")
    page.get_by_role("button", name="Draw a mask").click()
    page.get_by_role("button", name="Mask all").click()
    expect(strength).to_have_value("0.85")
    generate(page)
    assert "strength" not in front.asked[0].fields, "the model's own default holds"


def test_both_caches_are_compared_with_the_same_picture(open_page: Open):
    page, front = open_page()
    choose(page, file_of("one.png"))
    compare_caches(page)
    begin(page, "star", Seed=7)
    page.get_by_role("button", name="Remove one.png").click()
    expect(page.locator("figure.done")).to_have_count(2)
    expect(page.locator(".verdict")).to_have_text(
        "Denoised in 0.10 s in place of 0.40 s, 4.0 times as fast; identical to the uncached picture."
    )
    off, on = front.asked
    assert off.files == on.files
    assert off.fields == on.fields | {"cache_interval": "1"}
    expect(page.get_by_role("slider", name="Before and after: star, cache off, seed 7")).to_be_visible()


def test_an_error_of_an_edit_is_a_sentence(open_page: Open):
    page, _ = open_page(refusal="strength is 0.01, must leave at least 1 of 50 num_inference_steps")
    choose(page, file_of("one.png"))
    begin(page, "star")
    expect(page.locator(".failed .state")).to_have_text(re.compile("^strength is 0.01, must leave"))
    expect(page.get_by_role("button", name="Send to edit")).not_to_be_visible()


# Results


def test_the_result_is_compared_with_its_picture_by_a_slider(open_page: Open):
    page, _ = open_page()
    choose(page, file_of("one.png"))
    generate(page, "star")
    slider = page.get_by_role("slider", name="Before and after: star")
    expect(slider).to_have_attribute("aria-valuetext", "50 % before, 50 % after")
    frame = page.locator(".compared")
    width = frame.bounding_box()["width"]
    before, after = frame.locator("img.before"), frame.locator("img:not(.before)")
    assert before.get_attribute("alt") == f"{after.get_attribute('alt')}, before"
    assert before.bounding_box() == after.bounding_box()
    slider.press("ArrowLeft")
    assert before.evaluate("each => getComputedStyle(each).clipPath") == "inset(0px 51% 0px 0px)"
    assert after.evaluate("each => getComputedStyle(each).clipPath") == "inset(0px 0px 0px 49%)"
    frame.click(position={"x": width * 0.25, "y": 20})
    assert float(slider.input_value()) == pytest.approx(25, abs=1)
    slider.press("Home")
    assert slider.get_attribute("aria-valuetext") == "0 % before, 100 % after"


def test_a_picture_of_another_shape_is_shown_whole(open_page: Open):
    page, _ = open_page()
    choose(page, file_of("one.png"))
    page.get_by_label("Width", exact=True).fill("64")
    page.get_by_label("Height", exact=True).fill("128")
    generate(page, "star")
    before = page.locator("img.before")
    assert before.evaluate("each => getComputedStyle(each).objectFit") == "contain"
    box = page.locator(".compared").bounding_box()
    assert box["height"] / box["width"] == pytest.approx(2, rel=0.02)


def test_a_result_is_used_as_the_next_input(open_page: Open):
    page, front = open_page(height=500)
    generate(page, "star")
    name, file = saved(page)
    page.get_by_role("button", name="Send to edit: star").click()
    expect(page.get_by_role("button", name=f"Remove {name}")).to_be_visible()
    expect(page.get_by_role("group", name="Settings of a picture")).not_to_be_visible()
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    expect(page.get_by_label("Prompt", exact=True)).to_be_in_viewport()
    generate(page, "a red star", pictures=2)
    (sent,) = front.asked[1].files["image"]
    assert sent.content == file
    assert front.asked[1].fields["prompt"] == "a red star"


WITHIN_ITS_BOX = """(button) => {
  const [own, around] = [button, button.closest("figure, form, section")].map((each) => each.getBoundingClientRect());
  return button.scrollWidth <= button.clientWidth && around.left <= own.left && own.right <= around.right;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1440])
def test_it_fits_narrow_and_wide_windows(open_page: Open, width: int, scheme: str):
    page, _ = open_page(width=width, height=900, color_scheme=scheme, reduced_motion="reduce")
    box = begin_mask(page, file_of("a-holiday-at-the-sea.png", picture((1200, 800))))
    drag(page, box, (0.6, 0.4), (0.75, 0.5), (0.65, 0.6))
    page.get_by_text("Mask a rectangle").click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    shoot(page, f"form-{width}-{scheme}")
    generate(page, "a ball of wool")
    shoot(page, f"result-{width}-{scheme}")
    page.get_by_role("button", name="Done with the mask").click()
    compare_caches(page)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("figure.done")).to_have_count(3)
    shoot(page, f"pair-{width}-{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for button in page.locator("button:visible, a.save:visible").all():
        assert button.evaluate(WITHIN_ITS_BOX), button.inner_text()
