"""The front with the shipped model in a real Triton: OpenAI's client, and the page in a headless Chromium."""

from __future__ import annotations

import base64
import io
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import Pages, needs_chromium, shoot
from tests.support.fake_triton import Behaviour, Call, Picture, Step, fake_triton
from tests.support.front import running_front
from tests.support.serving import Triton


@pytest.fixture(scope="module")
def url(triton: Triton) -> Iterator[str]:
    with running_front(triton.grpc_url, default_model="emoji") as url:
        yield url


def test_openais_client_makes_the_picture_that_triton_makes(triton, url):
    fields = {"seed": 7, "num_inference_steps": 10}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        answer = client.images.generate(model="emoji", prompt="red apple, 3d", size="48x64", extra_body=fields)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))))
    with triton.client() as direct:
        expected = direct.generate("red apple, 3d", width=48, height=64, **fields)
    assert picture.shape == (64, 48, 3)
    assert np.array_equal(picture, expected.image[0])
    assert answer.data[0].report["full_steps"] == expected.report["full_steps"]


def test_the_models_limits_and_defaults_are_told(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        models = {model.id: model for model in client.models.list()}
    assert {"emoji", "faulty"} <= set(models)
    assert models["emoji"].parameters["max_size"] == "128"


def test_several_pictures_share_the_engine(triton, url):
    before = triton.wait_until_idle()
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        answer = client.images.generate(model="emoji", prompt="star", n=6, extra_body={"seed": 1})
    after = triton.wait_until_idle()
    assert [each.report["seed"] for each in answer.data] == [1, 2, 3, 4, 5, 6]
    assert after["taylorseer_requests_total ok"] - before["taylorseer_requests_total ok"] == 6


@pytest.fixture
def open_page(browser: Browser, url: str) -> Iterator[Any]:
    """Opens the page in a window of some size."""
    pages = Pages(browser)

    def opened(width: int = 1100, height: int = 900, address: str = url) -> Page:
        return pages.open(address, width, height)

    yield opened
    pages.close()
    assert not pages.problems


def begin(page: Page, prompt: str, **fields: object) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    for label, value in fields.items():
        page.get_by_label(label, exact=True).fill(str(value))
    page.get_by_role("button", name="Generate").click()


@needs_chromium
def test_a_prompt_becomes_two_pictures_side_by_side(open_page):
    page = open_page()
    expect(page.locator("#server")).to_have_text(re.compile(r"\d models are ready"))
    begin(page, "red apple, 3d", Seed=7)
    figures = page.locator("figure")
    expect(figures).to_have_count(2)
    expect(figures.nth(1)).to_have_class("done", timeout=60_000)
    off, on = (figures.nth(i).locator(".state").inner_text() for i in range(2))
    assert re.match(r"\d+\.\d\d s, 12 of 50 steps full; PSNR (\d\d\.\d) dB to the uncached picture, denoised", on)
    assert 35 < float(re.search(r"([\d.]+) dB", on)[1]) < 65
    assert re.match(r"\d+\.\d\d s, 50 of 50 steps full$", off)
    sizes = page.eval_on_selector_all(
        "figure img", "images => images.map(each => [each.naturalWidth, each.naturalHeight])"
    )
    assert sizes == [[64, 64], [64, 64]]
    assert page.locator("article h2").inner_text() == "red apple, 3d 64x64, seed 7"
    shoot(page, "pair")
    page.get_by_label("Prompt", exact=True).fill("something else")
    with page.expect_download() as download:
        page.get_by_role("link", name="Save red apple, 3d, cache off").click()
    assert download.value.suggested_filename == "red-apple-3d-cache-off-7.png"
    assert Image.open(download.value.path()).size == (64, 64)


# Writes down what each change of a figure shows: a picture may be done before a test looks at the page.
WATCH = """
window.seen = [];
new MutationObserver(() => {
  const figure = document.querySelector("#runs figure");
  if (!figure) return;
  const preview = figure.querySelector("img.unfinished:not([hidden])") !== null;
  window.seen.push([figure.querySelector(".state").textContent, figure.querySelector("progress").value, preview]);
}).observe(document.querySelector("#runs"), { subtree: true, childList: true, characterData: true, attributes: true });
"""


@needs_chromium
def test_progress_and_previews_come_while_it_works(open_page):
    page = open_page()
    page.evaluate(WATCH)
    page.get_by_label("Also with the cache off").uncheck()
    begin(page, "sunflower, noto", Steps=100, Seed=7)
    figure = page.locator("figure")
    expect(figure).to_have_class("done", timeout=60_000)
    expect(figure.locator("img.unfinished")).to_have_count(0)
    seen = [each for each in page.evaluate("window.seen") if re.fullmatch(r"step \d+ of 100", each[0])]
    values = [value for _, value, _ in seen]
    assert len(set(values)) > 10
    assert values == sorted(values)
    assert any(preview and 0 < value < 1 for _, value, preview in seen)


@needs_chromium
def test_a_request_can_be_cancelled(open_page, triton):
    before = triton.wait_until_idle()["taylorseer_requests_total cancelled"]
    page = open_page()
    page.get_by_label("Also with the cache off").uncheck()
    page.get_by_text("Cache and more").click()
    begin(page, "star", Steps=1000, **{"Interval N": 1})  # takes long enough to be seen
    figure = page.locator("figure")
    expect(figure.locator(".state")).to_have_text(re.compile(r"step \d+ of 1000"), timeout=20_000)
    figure.get_by_role("button", name="Cancel").click()
    expect(figure.locator(".state")).to_have_text("cancelled")
    assert triton.wait_until_idle()["taylorseer_requests_total cancelled"] == before + 1


@needs_chromium
def test_an_error_is_a_sentence_and_the_page_goes_on(open_page):
    page = open_page()
    page.get_by_label("Also with the cache off").uncheck()
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#problem")).to_have_text("Enter a prompt.")
    page.get_by_text("Cache and more").click()
    begin(page, "<img src=x onerror=alert(1)>", Preset="fastest")
    figure = page.locator("figure").first
    expect(figure.locator(".state")).to_have_text(re.compile("cache_preset is 'fastest', must be one of"))
    shoot(page, "error")
    page.get_by_label("Preset", exact=True).fill("")
    begin(page, "star", Steps=10)
    expect(page.locator("figure").first).to_have_class("done", timeout=60_000)
    assert page.locator("article").count() == 2
    assert page.locator("h2 img").count() == 0, "a prompt is text"


@needs_chromium
def test_it_fits_a_phone(open_page):
    page = open_page(width=360, height=740)
    begin(page, "tiger face, twemoji", Steps=10, Seed=7)
    expect(page.locator("figure").nth(1)).to_have_class("done", timeout=60_000)
    shoot(page, "phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    button = page.get_by_role("button", name="Generate").bounding_box()
    assert button["height"] >= 40


# What the page does with a server that answers as the test says


Made = Callable[..., str]


@pytest.fixture
def front_of() -> Iterator[Made]:
    """Starts a front of a pretended Triton, whose streams answer what a function says."""
    with ExitStack() as stack:

        def start(behaviour: Behaviour, parameters: Mapping[str, str] | None = None, **options: Any) -> str:
            limits = {"max_size": "128", "min_size": "16", "size_multiple": "8", "width": "64", "height": "64"}
            triton = stack.enter_context(fake_triton(behaviour, parameters=limits | dict(parameters or {})))
            return stack.enter_context(running_front(triton, default_model="emoji", **options))

        yield start


def finished(call: Call, steps: int = 50) -> Picture:
    full = [0] if call.fields.get("cache_interval") != 1 else list(range(steps))
    report = {"seed": call.fields["seed"], "num_steps": steps, "full_steps": full, "total_s": 0.5, "denoise_s": 0.4}
    return Picture(report | {"warnings": []})


def in_steps(call: Call) -> Iterator[Step | Picture]:
    for step in range(1, 51):
        yield Step(step, 50)
        time.sleep(0.005)
    yield finished(call)


@needs_chromium
def test_a_comparison_is_made_one_after_the_other(front_of: Made, open_page: Any):
    times: list[tuple[str, float, float]] = []

    def behaviour(call: Call) -> Iterator[Step | Picture]:
        began = time.monotonic()
        yield from in_steps(call)
        times.append(("off" if call.fields.get("cache_interval") == 1 else "on", began, time.monotonic()))

    page = open_page(address=front_of(behaviour))
    begin(page, "red apple, 3d", Seed=7)
    begin(page, "star", Seed=7)
    expect(page.locator("figure.done")).to_have_count(4, timeout=20_000)
    assert [name for name, *_ in times] == ["off", "on", "off", "on"]
    for (_, _, ended), (_, began, _) in pairwise(times):
        assert ended <= began, "side by side they would share the time that is compared"
    assert page.locator("figure strong").all_inner_texts() == ["cache off", "cache on"] * 2


@needs_chromium
def test_what_waits_for_its_turn_can_be_cancelled(front_of: Made, open_page: Any):
    asked, go_on = [], threading.Event()

    def behaviour(call: Call) -> Iterator[Step | Picture]:
        asked.append(call.fields["prompt"])
        yield Step(1, 50)
        go_on.wait(20)
        yield finished(call)

    page = open_page(address=front_of(behaviour))
    begin(page, "red apple, 3d")
    page.get_by_role("button", name="Cancel red apple, 3d, cache on").click()
    expect(page.locator("figure").nth(1).locator(".state")).to_have_text("cancelled")
    begin(page, "star")
    expect(page.locator("figure").first.locator(".state")).to_have_text("waits for its turn")
    go_on.set()
    expect(page.locator("figure.done")).to_have_count(3, timeout=20_000)
    assert asked == ["red apple, 3d", "star", "star"]


# Counts what a screen reader would read out
LISTEN = """
window.heard = [];
const live = "[role=status], [role=alert], [aria-live]";
new MutationObserver((changes) => {
  for (const { target } of changes) {
    const region = (target.nodeType === Node.TEXT_NODE ? target.parentElement : target)?.closest(live);
    if (region) window.heard.push(region.innerText);
  }
}).observe(document.body, { subtree: true, childList: true, characterData: true });
"""


@needs_chromium
def test_start_quarters_and_end_are_announced_and_no_steps(front_of: Made, open_page: Any):
    page = open_page(address=front_of(in_steps))
    expect(page.locator("#server")).to_have_text("1 model is ready")
    page.evaluate(LISTEN)
    begin(page, "red apple, 3d", Seed=7)
    expect(page.locator("figure.done")).to_have_count(2, timeout=20_000)
    page.wait_for_timeout(200)
    heard = [each for each in page.evaluate("window.heard") if each]
    assert len(heard) <= 11, "two starts, six quarters, two ends, and the comparison"
    assert heard[0] == "red apple, 3d, cache off: started"
    assert "red apple, 3d, cache on: started" in heard
    assert heard[-1].startswith("red apple, 3d, cache on: done, 0.50 s, 1 of 50 steps full; ")
    assert heard.count("red apple, 3d, cache off: 50 %") <= 1


def waiting_for(go_on: threading.Event) -> Callable[[Call], Iterator[Step | Picture]]:
    """Requests that stay at their first step until they may go on."""

    def behaviour(call: Call) -> Iterator[Step | Picture]:
        yield Step(1, 50)
        go_on.wait(20)
        yield finished(call)

    return behaviour


@needs_chromium
def test_every_control_of_a_picture_has_a_name_of_its_own(front_of: Made, open_page: Any):
    go_on = threading.Event()
    page = open_page(address=front_of(waiting_for(go_on)))
    begin(page, "red apple, 3d")
    for kind in ("off", "on"):
        expect(page.get_by_role("progressbar", name=f"red apple, 3d, cache {kind}", exact=True)).to_be_visible()
        expect(page.get_by_role("button", name=f"Cancel red apple, 3d, cache {kind}", exact=True)).to_be_visible()
    go_on.set()
    for kind in ("off", "on"):
        expect(page.get_by_role("link", name=f"Save red apple, 3d, cache {kind}", exact=True)).to_be_visible()
        expect(page.get_by_role("img", name=f"red apple, 3d, cache {kind}", exact=True)).to_be_visible()


@needs_chromium
def test_the_focus_is_handed_on_when_a_button_goes(front_of: Made, open_page: Any):
    go_on = threading.Event()
    page = open_page(address=front_of(waiting_for(go_on)))
    begin(page, "star")
    cancel = {kind: page.get_by_role("button", name=f"Cancel star, cache {kind}") for kind in ("off", "on")}
    cancel["off"].focus()
    page.keyboard.press("Enter")
    expect(cancel["on"]).to_be_focused()
    go_on.set()
    expect(page.get_by_role("link", name="Save star, cache on")).to_be_focused()
    go_on.clear()
    page.get_by_label("Also with the cache off").uncheck()
    begin(page, "cactus")
    page.get_by_role("button", name="Cancel cactus").focus()
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Generate")).to_be_focused()
    go_on.set()


@needs_chromium
@pytest.mark.parametrize(
    ("typed", "seed"), [("9007199254740993", 2**53 + 1), (str(2**63 - 1), 2**63 - 1), ("007", 7), ("0", 0)]
)
def test_a_seed_is_sent_as_it_is_typed(front_of: Made, open_page: Any, typed: str, seed: int):
    asked = []

    def behaviour(call: Call) -> Iterator[Picture]:
        asked.append(call.fields["seed"])
        yield finished(call)

    page = open_page(address=front_of(behaviour))
    begin(page, "星, noto", Seed=typed)
    expect(page.locator("figure.done")).to_have_count(2, timeout=20_000)
    assert asked == [seed, seed]
    assert page.locator("h2 small").inner_text().strip() == f"64x64, seed {seed}"
    with page.expect_download() as download:
        page.get_by_role("link", name="Save").last.click()
    assert download.value.suggested_filename == f"星-noto-cache-on-{seed}.png"


@needs_chromium
def test_the_models_limits_bound_the_form(front_of: Made, open_page: Any):
    asked = []

    def behaviour(call: Call) -> Iterator[Picture]:
        asked.append(call.fields)
        yield finished(call)

    limits = {"max_steps": "60", "max_frames": "33", "max_prompt_bytes": "20"}
    page = open_page(address=front_of(behaviour, limits))
    expect(page.locator("#server")).to_have_text("1 model is ready")
    for label, value in {"Steps": 61, "Width": 136, "Height": 20, "Frames": 4, "Seed": -1}.items():
        field = page.get_by_label(label, exact=True)
        begin(page, "star", **{label: value})
        assert not field.evaluate("field => field.validity.valid"), label
        field.fill("")
    page.get_by_label("Warm-up steps").evaluate("field => { field.value = 2000; }")
    begin(page, "star")
    expect(page.get_by_label("Warm-up steps")).to_be_visible()
    page.get_by_label("Warm-up steps").fill("")
    page.get_by_label("Seed", exact=True).fill(str(2**63))
    begin(page, "star")
    expect(page.locator("#problem")).to_have_text(f"Seed must be at most {2**63 - 1}.")
    assert not asked
    begin(page, "star" * 9, Seed=7, Steps=60)
    expect(page.locator("figure.done")).to_have_count(2, timeout=20_000)
    assert [(each["prompt"], each["num_inference_steps"]) for each in asked] == [("star" * 5, 60)] * 2


@needs_chromium
def test_a_wrong_key_is_told_and_the_dialog_can_be_had_again(front_of: Made, open_page: Any):
    page = open_page(address=front_of(in_steps, api_key="open sesame"))
    field, unlock = page.get_by_label("Key of this server"), page.get_by_role("button", name="Enter the key")
    expect(field).to_be_focused()
    expect(page.locator("dialog [role=alert]")).to_have_text("")
    field.fill("open barley")
    page.keyboard.press("Enter")
    expect(page.locator("dialog [role=alert]")).to_have_text("The server does not accept this key.")
    expect(field).to_have_value("")
    field.fill("open sesame")
    page.keyboard.press("Escape")  # what is typed and not sent is no key
    expect(field).not_to_be_visible()
    expect(page.locator("#server")).to_have_text("Authorization must be Bearer and the key of this server")
    unlock.click()
    expect(field).to_be_visible()  # it opens as the server's answer arrives, and Escape before that closes nothing
    expect(page.locator("dialog [role=alert]")).to_have_text("")
    page.keyboard.press("Escape")
    expect(unlock).to_be_visible()
    begin(page, "star")  # asks for it as well
    field.fill("open sesame")
    page.get_by_role("button", name="Continue").click()
    expect(page.locator("#server")).to_have_text("1 model is ready")
    expect(unlock).not_to_be_visible()
    expect(page.locator("figure.done")).to_have_count(2, timeout=20_000)


@needs_chromium
def test_a_server_with_a_key_asks_for_it_once(open_page, triton):
    with running_front(triton.grpc_url, default_model="emoji", api_key="open sesame") as locked:
        page = open_page(address=locked)
        page.get_by_label("Key of this server").fill("open sesame")
        page.get_by_role("button", name="Continue").click()
        expect(page.locator("#server")).to_have_text(re.compile("ready"))
        begin(page, "star", Steps=10)
        expect(page.locator("figure").nth(1)).to_have_class("done", timeout=60_000)
        page.close()
