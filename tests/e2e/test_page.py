"""The front with the shipped model in a real Triton: OpenAI's client, and the page in a headless Chromium."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.front import running_front
from tests.support.serving import Triton

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCREENSHOTS = os.environ.get("TAYLORSEER_SCREENSHOTS")  # a folder to look at them
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"
)
# It must not look for its makers' hosts, and as root, as in containers, it runs only without its sandbox.
ARGUMENTS = [
    *("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-gpu", "--no-sandbox"),
]


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, url: str) -> Iterator[Any]:
    """Opens the page in a window of some size, and holds it to loading nothing from elsewhere and logging no error."""
    pages: list[Page] = []
    problems: list[str] = []
    requested: list[str] = []

    def opened(width: int = 1100, height: int = 900, address: str = url) -> Page:
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith((address, "data:")) else problems.append(request.url),
        )
        page.goto(address)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert not problems
    assert all(each.startswith(("http://127.0.0.1:", "data:")) for each in requested)


def shoot(page: Page, name: str) -> None:
    if SCREENSHOTS:
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{SCREENSHOTS}/{name}.png", full_page=True)


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
    on, off = (figures.nth(i).locator(".state").inner_text() for i in range(2))
    assert re.match(r"\d+\.\d\d s, 12 of 50 steps full; PSNR (\d\d\.\d) dB to the uncached picture, denoised", on)
    assert 35 < float(re.search(r"([\d.]+) dB", on)[1]) < 65
    assert re.match(r"\d+\.\d\d s, 50 of 50 steps full$", off)
    sizes = page.eval_on_selector_all(
        "figure img", "images => images.map(each => [each.naturalWidth, each.naturalHeight])"
    )
    assert sizes == [[64, 64], [64, 64]]
    assert page.locator("article h2").inner_text() == "red apple, 3d 64x64, seed 7"
    with page.expect_download() as download:
        page.get_by_role("link", name="Save").first.click()
    assert download.value.suggested_filename == "red-apple-3d-7.png"
    assert Image.open(download.value.path()).size == (64, 64)
    shoot(page, "pair")


@needs_chromium
def test_progress_and_previews_come_while_it_works(open_page):
    page = open_page()
    page.get_by_label("Also with the cache off").uncheck()
    begin(page, "sunflower, noto", Steps=400, Seed=7)
    figure = page.locator("figure")
    expect(figure.locator(".state")).to_have_text(re.compile(r"step \d+ of 400"), timeout=20_000)
    expect(figure.locator("img.unfinished")).to_be_visible(timeout=60_000)
    assert 0 < figure.locator("progress").evaluate("bar => bar.value") < 1
    shoot(page, "preview")
    expect(figure).to_have_class("done", timeout=60_000)
    expect(figure.locator("img.unfinished")).to_have_count(0)


@needs_chromium
def test_a_request_can_be_cancelled(open_page, triton):
    before = triton.wait_until_idle()["taylorseer_requests_total cancelled"]
    page = open_page()
    page.get_by_label("Also with the cache off").uncheck()
    begin(page, "star", Steps=1000)
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
