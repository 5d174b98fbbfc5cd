"""The front with the shipped model in a real Triton: OpenAI's client, and the page in a headless Chromium."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import Pages, needs_chromium, shoot
from tests.support.front import running_front
from tests.support.page import begin, choose, compare_caches, saved
from tests.support.serving import Triton
from tests.support.waiting import wait_for


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


@needs_chromium
def test_a_prompt_becomes_two_pictures_side_by_side(open_page):
    page = open_page()
    expect(page.locator("#server")).to_have_text(re.compile(r"\d models are ready"))
    compare_caches(page)
    begin(page, "red apple, 3d", Seed=7)
    figures = page.locator("figure")
    expect(figures).to_have_count(2)
    expect(figures.nth(1)).to_have_class("done", timeout=60_000)
    off, on = (figures.nth(i).locator(".state").inner_text() for i in range(2))
    assert re.match(r"\d+\.\d\d s, 12 of 50 steps full$", on)
    assert re.match(r"\d+\.\d\d s, 50 of 50 steps full$", off)
    found = page.locator(".verdict").inner_text()
    assert re.match(r"Denoised in \d+\.\d\d s in place of \d+\.\d\d s, \d+\.\d times as fast; PSNR ", found)
    assert 35 < float(re.search(r"([\d.]+) dB", found)[1]) < 65
    sizes = page.eval_on_selector_all(
        "figure img", "images => images.map(each => [each.naturalWidth, each.naturalHeight])"
    )
    assert sizes == [[64, 64], [64, 64]]
    assert page.locator("article h3").inner_text() == "red apple, 3d"
    assert page.locator(".about").all_inner_texts() == ["64x64, seed 7"] * 2
    shoot(page, "pair")
    page.get_by_label("Prompt", exact=True).fill("something else")
    name, file = saved(page, "red apple, 3d, cache off")
    assert name == "red-apple-3d-cache-off-7.png"
    assert Image.open(io.BytesIO(file)).size == (64, 64)


@needs_chromium
def test_a_saved_picture_brings_its_settings_back_and_they_make_it_again(open_page):
    page = open_page()
    begin(page, "tiger face,\ntwemoji", count=2, Seed=2**53, Steps=10)
    figures = page.locator("figure.done")
    expect(figures).to_have_count(2, timeout=60_000)
    name, file = saved(page, f"tiger face, twemoji, seed {2**53 + 1}")
    page.reload()
    expect(figures).to_have_count(2)
    choose(page, {"name": name, "mimeType": "image/png", "buffer": file})
    page.get_by_role("button", name="Use its settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("tiger face,\ntwemoji")
    page.get_by_role("button", name="Generate").click()
    expect(figures).to_have_count(3, timeout=60_000)
    _, again = saved(page)
    one, other = (np.asarray(Image.open(io.BytesIO(each))) for each in (file, again))
    assert np.array_equal(one, other)


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
    cancelled, made = "taylorseer_requests_total cancelled", "taylorseer_requests_total ok"
    before = triton.wait_until_idle()
    page = open_page()
    page.get_by_text("Cache and more").click()
    begin(page, "star", Steps=1000, **{"Interval N": 1})  # takes long enough to be seen
    figure = page.locator("figure")
    expect(figure.locator(".state")).to_have_text(re.compile(r"step \d+ of 1000"), timeout=20_000)
    figure.get_by_role("button", name="Cancel").click()
    expect(figure.locator(".state")).to_have_text("cancelled")
    wait_for(lambda: triton.metrics()[cancelled] > before[cancelled], "the request is counted as cancelled")
    assert triton.wait_until_idle()[made] == before[made]


@needs_chromium
def test_places_in_the_queue_and_a_full_queue_are_told(open_page, triton):
    page = open_page()
    page.get_by_label("Model").select_option("faulty")  # 2 run, and 1 waits
    page.get_by_text("Cache and more").click()
    begin(page, "star", count=4, Steps=1000, **{"Interval N": 1})
    expect(page.get_by_text("waiting, next in the queue")).to_have_count(1)
    full = r"^2 requests are in flight and 1 wait, which is all this model takes: try again( in \d+ s)?$"
    expect(page.locator(".failed .state")).to_have_text(re.compile(full))
    page.get_by_role("button", name="Cancel all").click()
    expect(page.locator(".cancelled")).to_have_count(3)
    triton.wait_until_idle("faulty")


@needs_chromium
def test_an_error_is_a_sentence_and_the_page_goes_on(open_page):
    page = open_page()
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
    assert page.locator("h3 img, dd img").count() == 0, "a prompt is text"


@needs_chromium
def test_it_fits_a_phone(open_page):
    page = open_page(width=360, height=740)
    page.locator("#settings > summary").click()
    begin(page, "tiger face, twemoji", count=2, Steps=10, Seed=7)
    expect(page.locator("figure.done")).to_have_count(2, timeout=60_000)
    expect(page.locator("figure").first).to_be_in_viewport()
    shoot(page, "phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    button = page.get_by_role("button", name="Generate").bounding_box()
    assert button["height"] >= 40


@needs_chromium
def test_a_server_with_a_key_asks_for_it_once(open_page, triton):
    with running_front(triton.grpc_url, default_model="emoji", api_key="open sesame") as locked:
        page = open_page(address=locked)
        page.get_by_label("Key of this server").fill("open sesame")
        page.get_by_role("button", name="Continue").click()
        expect(page.locator("#server")).to_have_text(re.compile("ready"))
        begin(page, "star", Steps=10)
        expect(page.locator("figure.done")).to_have_count(1, timeout=60_000)
        page.close()
