"""The page at the real front of a pretended Triton, whose streams answer as the test says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import Pages, needs_chromium
from tests.support.fake_triton import Behaviour, Call, Picture, Step, fake_triton
from tests.support.front import running_front
from tests.support.page import begin, compare_caches, kept, saved

pytestmark = needs_chromium

Made = Callable[..., Page]
KINDS = ("off", "on")


@pytest.fixture
def page_of(browser: Browser) -> Iterator[Made]:
    """Opens the page at a front of a pretended Triton, whose streams answer what a function says."""
    pages = Pages(browser)
    with ExitStack() as stack:

        def start(behaviour: Behaviour, parameters: Mapping[str, str] | None = None, **options: Any) -> Page:
            limits = {"max_size": "128", "min_size": "16", "size_multiple": "8", "width": "64", "height": "64"}
            triton = stack.enter_context(fake_triton(behaviour, parameters=limits | dict(parameters or {})))
            return pages.open(stack.enter_context(running_front(triton, default_model="emoji", **options)))

        yield start
        pages.close()
    assert not pages.problems


def finished(call: Call, steps: int = 50) -> Picture:
    full = [0] if call.fields.get("cache_interval") != 1 else list(range(steps))
    report = {"seed": call.fields["seed"], "num_steps": steps, "full_steps": full, "total_s": 0.5, "denoise_s": 0.4}
    return Picture(report | {"warnings": []})


def in_steps(call: Call) -> Iterator[Step | Picture]:
    for step in range(1, 51):
        yield Step(step, 50)
        time.sleep(0.005)
    yield finished(call)


def waiting_for(go_on: threading.Event) -> Callable[[Call], Iterator[Step | Picture]]:
    """Requests that stay at their first step until they may go on."""

    def behaviour(call: Call) -> Iterator[Step | Picture]:
        yield Step(1, 50)
        go_on.wait(20)
        yield finished(call)

    return behaviour


# Turns


def test_pictures_are_made_side_by_side_and_comparisons_alone(page_of: Made):
    spans: list[tuple[str, float, float]] = []

    def behaviour(call: Call) -> Iterator[Step | Picture]:
        began = time.monotonic()
        yield from in_steps(call)
        kind = "off" if call.fields.get("cache_interval") == 1 else "on"
        spans.append((f"{call.fields['prompt']} {kind}", began, time.monotonic()))

    page = page_of(behaviour)
    begin(page, "cactus", count=2)
    compare_caches(page)
    for prompt in ("red apple", "star"):
        begin(page, prompt)
    page.get_by_label("Also with the cache off").uncheck()
    begin(page, "cactus", count=2)
    expect(page.locator("figure.done")).to_have_count(8, timeout=20_000)
    assert [name for name, *_ in spans[2:6]] == ["red apple off", "red apple on", "star off", "star on"]
    for alone in spans[2:6]:
        others = [each for each in spans if each is not alone]
        assert all(ended <= alone[1] or alone[2] <= began for _, began, ended in others), alone[0]
    for (_, *one), (_, *other) in (spans[:2], spans[6:]):
        assert max(one[0], other[0]) < min(one[1], other[1]), "the server packs what runs at the same time"


def test_what_waits_for_its_turn_can_be_cancelled(page_of: Made):
    asked, go_on = [], threading.Event()

    def behaviour(call: Call) -> Iterator[Step | Picture]:
        asked.append(call.fields["prompt"])
        yield from waiting_for(go_on)(call)

    page = page_of(behaviour)
    compare_caches(page)
    begin(page, "red apple, 3d", Seed=7)
    page.get_by_role("button", name="Cancel red apple, 3d, cache on").click()
    expect(page.locator("figure").nth(1).locator(".state")).to_have_text("cancelled")
    page.get_by_label("Also with the cache off").uncheck()
    begin(page, "star")
    expect(page.locator("figure").first.locator(".state")).to_have_text("waits for its turn")
    go_on.set()
    expect(page.locator("figure.done")).to_have_count(2, timeout=20_000)
    assert asked == ["red apple, 3d", "star"]


def test_no_more_run_at_once_than_leave_the_page_a_connection(page_of: Made):
    go_on, running = threading.Event(), []

    def behaviour(call: Call) -> Iterator[Step | Picture]:
        running.append(call.id)
        yield from waiting_for(go_on)(call)

    page = page_of(behaviour)
    begin(page, "star", count=8)
    expect(page.get_by_text("step 1 of 50")).to_have_count(4)
    expect(page.get_by_text("waits for its turn")).to_have_count(4)
    expect(page.locator("#kept")).to_have_text("8 being made")
    assert page.evaluate("fetch('/v1/models').then(({ ok }) => ok)"), "the browser has a connection left"
    page.get_by_role("button", name="Cancel all").click()
    expect(page.locator("figure.cancelled")).to_have_count(8)
    expect(page.get_by_role("button", name="Generate")).to_be_focused()
    go_on.set()
    assert len(running) == 4


# What is named and focused


def test_every_control_of_a_picture_has_a_name_of_its_own(page_of: Made):
    go_on = threading.Event()
    page = page_of(waiting_for(go_on))
    compare_caches(page)
    begin(page, "red apple, 3d", Seed=7)
    titles = [f"red apple, 3d, cache {kind}, seed 7" for kind in KINDS]
    for title in titles:
        expect(page.get_by_role("progressbar", name=f"Progress of {title}", exact=True)).to_be_visible()
        expect(page.get_by_role("button", name=f"Cancel {title}", exact=True)).to_be_visible()
    go_on.set()
    for title in titles:
        expect(page.get_by_role("link", name=f"Save {title}", exact=True)).to_be_visible()
        expect(page.get_by_role("img", name=title, exact=True)).to_be_visible()


def test_the_focus_is_handed_on_when_a_button_goes(page_of: Made):
    go_on = threading.Event()
    page = page_of(waiting_for(go_on))
    compare_caches(page)
    begin(page, "star", Seed=7)
    cancel = {kind: page.get_by_role("button", name=f"Cancel star, cache {kind}") for kind in KINDS}
    cancel["off"].focus()
    page.keyboard.press("Enter")
    again = page.get_by_role("button", name="Try again: star, cache off")
    expect(again).to_be_focused()
    cancel["on"].focus()
    go_on.set()
    expect(page.get_by_role("link", name="Save star, cache on")).to_be_focused()
    go_on.clear()
    again.focus()
    page.keyboard.press("Space")
    expect(cancel["off"]).to_be_focused()
    go_on.set()
    expect(page.get_by_role("link", name="Save star, cache off")).to_be_focused()
    expect(page.locator(".verdict")).to_contain_text("Denoised in 0.40 s")


# Fields


@pytest.mark.parametrize(
    ("typed", "seed"), [("9007199254740993", 2**53 + 1), (str(2**63 - 2), 2**63 - 2), ("007", 7), ("0", 0)]
)
def test_a_seed_is_sent_as_it_is_typed(page_of: Made, typed: str, seed: int):
    asked = []

    def behaviour(call: Call) -> Iterator[Picture]:
        asked.append(call.fields["seed"])
        yield finished(call)

    page = page_of(behaviour)
    begin(page, "星, noto", count=2, Seed=typed)
    expect(page.locator("figure.done")).to_have_count(2, timeout=20_000)
    assert sorted(asked) == [seed, seed + 1]
    assert page.locator(".about").all_inner_texts() == [f"64x64, seed {each}" for each in (seed, seed + 1)]
    assert saved(page, f"星, noto, seed {seed + 1}")[0] == f"星-noto-{seed + 1}.png"


def test_the_models_limits_bound_the_form(page_of: Made):
    asked = []

    def behaviour(call: Call) -> Iterator[Picture]:
        asked.append(call.fields)
        yield finished(call)

    page = page_of(behaviour, {"max_steps": "60", "max_frames": "33", "max_prompt_bytes": "20"})
    expect(page.locator("#server")).to_have_text("1 model is ready")
    for label, value in {"Steps": 61, "Width": 136, "Height": 20, "Frames": 4, "Seed": -1}.items():
        field = page.get_by_label(label, exact=True)
        begin(page, "star", **{label: value})
        assert not field.evaluate("field => field.validity.valid"), label
        field.fill("")
    begin(page, "star", count=9)
    assert not page.get_by_role("spinbutton", name="Pictures").evaluate("field => field.validity.valid")
    page.locator("#settings > summary").click()
    page.get_by_label("Warm-up steps").evaluate("field => { field.value = 2000; }")
    begin(page, "star")
    expect(page.get_by_label("Warm-up steps")).to_be_visible()
    page.get_by_label("Warm-up steps").fill("")
    for count, most in ((1, 2**63 - 1), (3, 2**63 - 3)):
        begin(page, "star", count, Seed=most + 1)
        expect(page.locator("#problem")).to_have_text(f"Seed must be at most {most}.")
    assert not asked
    begin(page, "star" * 9, Seed=7, Steps=60)
    expect(page.locator("figure.done")).to_have_count(1, timeout=20_000)
    assert [(each["prompt"], each["num_inference_steps"]) for each in asked] == [("star" * 5, 60)]


def test_a_video_is_shown_saved_and_kept_and_is_no_input(page_of: Made):
    def behaviour(call: Call) -> Iterator[Step | Picture]:
        report = finished(call).report | {"fps": 8}
        yield Picture(report, np.zeros((call.fields["num_frames"], 32, 32, 3), np.uint8))

    page = page_of(behaviour, {"max_frames": "33"})
    expect(page.locator("#server")).to_have_text("1 model is ready")
    begin(page, "star", Seed=7, Frames=5)
    for _ in range(2):
        expect(page.get_by_label("star, seed 7", exact=True)).to_be_visible()
        name, content = saved(page, "star")
        assert name == "star-7.mp4"
        assert content[4:8] == b"ftyp", "it is as the server made it"
        for button in ("Send to edit", "Enlarge"):
            expect(page.get_by_role("button", name=button)).not_to_be_visible()
        expect(page.locator("#kept")).to_have_text("1 kept in this browser")
        kept(page)
        page.reload()
    expect(page.locator("video")).to_have_js_property("videoWidth", 32)  # read anew from what was kept


# The key


def test_a_wrong_key_is_told_and_the_dialog_can_be_had_again(page_of: Made):
    page = page_of(in_steps, api_key="open sesame")
    field, unlock = page.get_by_label("Key of this server"), page.get_by_role("button", name="Enter the key")
    expect(field).to_be_focused()
    expect(page.locator("#wrong")).to_have_text("")
    field.fill("open barley")
    page.keyboard.press("Enter")
    expect(page.locator("#wrong")).to_have_text("The server does not accept this key.")
    expect(field).to_have_value("")
    field.fill("open sesame")
    page.keyboard.press("Escape")  # what is typed and not sent is no key
    expect(field).not_to_be_visible()
    expect(page.locator("#server")).to_have_text("Authorization must be Bearer and the key of this server")
    unlock.click()
    expect(field).to_be_visible()  # it opens as the server's answer arrives, and Escape before that closes nothing
    expect(page.locator("#wrong")).to_have_text("")
    page.keyboard.press("Escape")
    expect(unlock).to_be_visible()
    begin(page, "star")  # asks for it as well
    field.fill("open sesame")
    page.get_by_role("button", name="Continue").click()
    expect(page.locator("#server")).to_have_text("1 model is ready")
    expect(unlock).not_to_be_visible()
    expect(page.locator("figure.done")).to_have_count(1, timeout=20_000)
