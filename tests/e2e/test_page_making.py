"""Making pictures with the page in a headless Chromium: what the form sends, and what can be done with each picture."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import needs_chromium
from tests.support.page import (
    Open,
    begin,
    begin_mask,
    choose,
    compare_caches,
    drag,
    file_of,
    generate,
    pages_at_fronts,
    picture,
    problem,
    thumbs,
)
from tests.support.pretend_front import PRESETS

pytestmark = needs_chromium


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    with pages_at_fronts(browser) as opened:
        yield opened


def field(page: Page, label: str) -> Any:
    return page.get_by_label(label, exact=True)


def figures(page: Page) -> Any:
    return page.locator("figure.done")


# Texts


@pytest.mark.parametrize("key", ["Control", "Meta"])
def test_enter_begins_a_line_and_with_control_it_generates(open_page: Open, key: str):
    page, front = open_page()
    height = field(page, "Prompt").bounding_box()["height"]
    field(page, "Prompt").focus()
    for line in range(8):
        page.keyboard.type(f"line {line}")
        page.keyboard.press("Enter")
    assert field(page, "Prompt").bounding_box()["height"] > height, "it grows"
    assert not front.asked
    field(page, "Negative prompt").fill("blue\nlarge")
    page.keyboard.press(f"{key}+Enter")
    expect(figures(page)).to_have_count(1)
    (asked,) = front.asked
    assert asked.fields["prompt"] == "".join(f"line {line}\n" for line in range(8))
    assert asked.fields["negative_prompt"] == "blue\nlarge"


def test_an_edit_has_the_same_new_lines(open_page: Open):
    page, front = open_page()
    choose(page, file_of('a "quoted" name.png'))
    generate(page, "a red\napple")
    assert front.asked[0].fields["prompt"] == "a red\napple"
    assert front.asked[0].files["image"][0].name == "a %22quoted%22 name.png", "as browsers write it in forms"


def test_examples_fill_the_prompt(open_page: Open):
    page, front = open_page({"emoji": None, "flux": None}, parameters={"examples": "red apple, 3d\n\n  star \nstar"})
    examples = page.get_by_role("group", name="Examples of prompts").get_by_role("button")
    assert examples.all_inner_texts() == ["red apple, 3d", "star"]
    examples.first.click()
    expect(field(page, "Prompt")).to_have_value("red apple, 3d")
    expect(field(page, "Prompt")).to_be_focused()
    assert not front.asked


def test_a_model_that_tells_no_examples_has_none(open_page: Open):
    page, _ = open_page()
    expect(page.get_by_role("group", name="Examples of prompts")).not_to_be_visible()


def test_a_preset_is_one_of_the_models_or_any_other_name(open_page: Open):
    page, front = open_page()
    assert field(page, "Preset").evaluate("input => [...input.list.options].map(({ value }) => value)") == PRESETS
    page.get_by_text("Cache and more").click()
    begin(page, "star", Preset="learnt")  # of a model that was tuned since the page was opened
    expect(figures(page)).to_have_count(1)
    assert front.asked[0].fields["cache_preset"] == "learnt"


def test_a_server_that_tells_no_presets_offers_none(open_page: Open):
    page, _ = open_page({"flux": None})
    expect(page.locator("#presets option")).to_have_count(0)


# Numbers and sizes


def test_several_pictures_have_seeds_that_follow_and_run_side_by_side(open_page: Open):
    page, front = open_page()
    begin(page, "star", count=3, Seed=5)
    expect(figures(page)).to_have_count(3)
    assert sorted(asked.fields["seed"] for asked in front.asked) == [5, 6, 7]
    assert page.locator(".about").all_inner_texts() == [f"64x48, seed {seed}" for seed in (5, 6, 7)]
    assert front.most_at_once == 3
    begin(page, "moon", Seed=1)
    expect(figures(page)).to_have_count(4)
    assert page.locator("h3").all_inner_texts() == ["moon", "star", "star", "star"], "the newest comes first"


def test_sliders_follow_the_models_defaults_and_limits(open_page: Open):
    parameters = {"num_inference_steps": "28", "guidance_scale": "4.5", "max_steps": "50"}
    page, front = open_page(parameters=parameters)
    steps, guidance = (page.get_by_role("slider", name=f"{name}, as a slider") for name in ("Steps", "Guidance"))
    bounds = [(slider.get_attribute("min"), slider.get_attribute("max")) for slider in (steps, guidance)]
    assert bounds == [("1", "50"), ("0", "10")]
    expect(steps).to_have_value("28")
    expect(steps).to_have_attribute("aria-valuetext", "28, the model's")
    generate(page)
    assert front.asked[0].fields.keys() & {"num_inference_steps", "guidance_scale"} == set(), "the model's own hold"
    steps.press("ArrowRight")
    guidance.press("ArrowLeft")
    expect(field(page, "Steps")).to_have_value("29")
    expect(steps).to_have_attribute("aria-valuetext", "29")
    field(page, "Guidance").fill("0.5")
    expect(guidance).to_have_value("0.5")
    generate(page, pictures=2)
    assert {name: front.asked[1].fields[name] for name in ("num_inference_steps", "guidance_scale")} == {
        "num_inference_steps": 29,
        "guidance_scale": 0.5,
    }


SIZES = [
    {"width": "64", "height": "64", "min_size": "32", "max_size": "128", "size_multiple": "8"},  # emoji
    {"width": "1024", "height": "1024", "min_size": "16", "max_size": "2048", "size_multiple": "16"},  # FLUX.1
    {"width": "832", "height": "480", "min_size": "16", "max_size": "1280", "size_multiple": "16"},  # Wan2.1
]


@pytest.mark.parametrize("limits", SIZES, ids=["emoji", "flux", "wan"])
def test_shapes_have_sizes_that_the_model_makes_at_about_its_own_area(open_page: Open, limits: dict[str, str]):
    page, front = open_page(parameters=limits)
    width, height, low, high, multiple = (int(value) for value in limits.values())
    shapes = page.get_by_role("group", name="Shape")
    for across, down in ((1, 1), (4, 3), (3, 4), (16, 9), (9, 16)):
        shapes.get_by_role("radio", name=f"{across}:{down}", exact=True).check()
        size = [int(field(page, label).input_value()) for label in ("Width", "Height")]
        assert all(low <= side <= high and side % multiple == 0 for side in size), size
        # A side is at most half a multiple from what it should be; the area is 3/4 to 4/3 of the model's own.
        assert abs(size[0] * down / across - size[1]) <= multiple / 2 * max(1, down / across), size
        assert abs(math.log(size[0] * size[1] / (width * height))) <= math.log(4 / 3) + 1e-9, size
    generate(page)
    assert front.asked[0].fields["size"] == "x".join(map(str, size))
    shapes.get_by_role("radio", name="default").check()
    generate(page, pictures=2)
    assert front.asked[1].fields["size"] == f"{width}x{height}"
    field(page, "Width").fill(str(low))
    expect(shapes.get_by_role("radio", checked=True)).to_have_count(0)


def test_an_edit_is_as_large_as_the_picture_unless_a_shape_is_chosen(open_page: Open):
    page, front = open_page()
    choose(page, file_of("one.png", picture((320, 240))))
    shapes = page.get_by_role("group", name="Shape")
    expect(shapes.get_by_role("radio", name="as the picture")).to_be_checked()
    generate(page)
    assert front.asked[0].fields.keys() & {"size", "width", "height"} == set()
    shapes.get_by_role("radio", name="1:1").press("Space")
    generate(page, pictures=2)
    assert front.asked[1].fields["size"] == "56x56"  # of 64 x 48 = 3072 pixels


def test_a_model_of_one_size_offers_no_shapes(open_page: Open):
    page, _ = open_page(parameters={"min_size": "256", "max_size": "256", "width": "256", "height": "256"})
    expect(page.get_by_role("group", name="Shape")).not_to_be_visible()


def test_a_shape_that_the_model_cannot_make_is_not_offered(open_page: Open):
    """Of sides of 64, 128, 192 and 256 pixels 256 x 128 is the nearest to 16:9, and is 2:1."""
    limits = {"min_size": "64", "max_size": "256", "size_multiple": "64", "width": "256", "height": "256"}
    page, _ = open_page(parameters=limits)
    shapes = page.get_by_role("group", name="Shape").get_by_role("radio")
    assert shapes.evaluate_all("all => all.map(({ value }) => value)") == ["x", "256x256", "256x192", "192x256"]


# What can be done with a picture


def test_reuse_puts_everything_back_into_the_form(open_page: Open):
    page, front = open_page({"other": [], "flux": None})
    values = {"Prompt": "a red\napple", "Seed": 2**53 + 1, "Steps": 12, "Guidance": 2.5, "Negative prompt": "blue"}
    page.get_by_text("Cache and more").click()
    values |= {"Interval N": 4, "Order O": 2, "Target error": 0.5, "Schedule": "even", "Deadline, ms": 60_000}
    page.get_by_label("Model").select_option("flux")
    page.get_by_label("Predictor").select_option("hermite")
    for label, value in values.items():
        field(page, label).fill(str(value))
    generate(page, str(values["Prompt"]))
    page.reload()
    page.get_by_role("button", name="Reuse the settings of a red apple").click()
    expect(field(page, "Prompt")).to_be_focused()
    generate(page, str(values["Prompt"]), pictures=2)
    assert front.asked[1] == front.asked[0]
    assert front.asked[0].fields["cache_interval"] == 4
    assert front.asked[0].fields["model"] == "flux"


def test_reuse_brings_pictures_and_mask_back(open_page: Open):
    page, front = open_page()
    box = begin_mask(page, file_of("one.png"), brush=20)
    drag(page, box, (0.2, 0.3), (0.8, 0.6))
    page.get_by_role("slider", name="Strength").fill("0.7")
    generate(page, "star")
    page.reload()  # nothing of the mask is left but what the browser has kept
    generate(page, "something else", pictures=2)
    page.get_by_role("button", name="Reuse the settings of star").click()
    expect(thumbs(page)).to_have_count(1)
    expect(page.get_by_role("button", name="Change the mask")).to_be_visible()
    expect(page.locator("#strength-number")).to_have_text("0.70")
    generate(page, "star", pictures=3)
    first, again = front.asked[0], front.asked[2]
    assert again.fields == {**first.fields, "seed": again.fields["seed"]}
    for name in ("image", "mask"):
        one, other = (asked.files[name][0].image.convert("RGBA") for asked in (first, again))
        assert one.tobytes() == other.tobytes(), name


def test_vary_starts_the_same_at_once_with_another_seed(open_page: Open):
    page, front = open_page()
    begin_mask(page, file_of("one.png"))
    page.get_by_role("button", name="Mask all").click()
    begin(page, "star", Seed=7, Steps=9)
    expect(figures(page)).to_have_count(1)
    field(page, "Prompt").fill("something else")
    page.get_by_role("button", name="Vary star").click()
    expect(figures(page)).to_have_count(2)
    one, other = front.asked
    assert other.fields == {**one.fields, "seed": other.fields["seed"]}
    assert other.fields["seed"] != "7"
    assert other.files == one.files
    assert other.files.keys() == {"image", "mask"}


def test_what_a_picture_was_made_with_is_told(open_page: Open):
    page, front = open_page(parameters={"guidance_scale": "3.0", "cache_preset": "tuned-12"})
    front.warnings = ["<b>the text</b> is cut"]
    begin(page, "<img src=x onerror=alert(1)>\nred", Seed=7, Steps=9)
    page.locator("figure.done summary").click()
    terms = [page.locator(f".details {name}").all_inner_texts() for name in ("dt", "dd")]
    told = dict(zip(*terms, strict=True))
    assert told.pop("Made")
    assert told == {
        "Model": "flux",
        "Prompt": "<img src=x onerror=alert(1)>\nred",
        "Seed": "7",
        "Steps": "9",
        "Size": "64 x 48 pixels",
        "Guidance": "3.0, the model's",
        "Cache": "the model's choice, preset tuned-12",
        "Time": "0.50 s in all, denoising 0.10 s, in the queue 0.02 s",
        "Full steps": "1 of 8 steps full: 0",
        "Engine": "pretended",
        "Warnings": "<b>the text</b> is cut",
    }
    expect(page.locator(".state")).to_have_text("0.50 s, 1 of 8 steps full; <b>the text</b> is cut")


def test_the_settings_are_copied(open_page: Open):
    page, _ = open_page()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    begin(page, "star", Seed=2**53 + 1, Steps=9)
    page.locator("figure.done summary").click()
    page.get_by_role("button", name="Copy the settings of star").click()
    expect(page.locator("#news")).to_have_text(f"The settings of star, seed {2**53 + 1} are copied")
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    expected = {"prompt": "star", "num_inference_steps": 9, "size": "64x48", "seed": 2**53 + 1}
    assert (copied["model"], copied["fields"]) == ("flux", expected)


def test_a_deleted_picture_hands_the_focus_on(open_page: Open):
    page, _ = open_page()
    begin(page, "star", count=3, Seed=5)
    expect(figures(page)).to_have_count(3)
    delete = [page.get_by_role("button", name=f"Delete star, seed {seed}") for seed in (5, 6, 7)]
    delete[1].press("Enter")
    expect(page.locator("#news")).to_have_text("star, seed 6 is deleted")
    expect(delete[2]).to_be_focused()
    page.keyboard.press("Enter")
    expect(delete[0]).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Generate")).to_be_focused()
    expect(page.get_by_text("Your pictures appear here.")).to_be_visible()


def test_the_rest_of_a_comparison_is_a_picture_like_others(open_page: Open):
    page, _ = open_page()
    compare_caches(page)
    begin(page, "star", Seed=5)
    expect(page.locator(".verdict")).to_be_visible()
    page.get_by_role("button", name="Delete star, cache off").click()
    expect(page.locator(".verdict")).not_to_be_visible()
    expect(page.locator("article h3")).to_have_text("star")
    expect(page.get_by_role("button", name="Delete star, cache on")).to_be_focused()


def test_a_picture_is_shown_large_and_the_focus_comes_back(open_page: Open):
    page, _ = open_page()
    generate(page, "star")
    enlarge = page.get_by_role("button", name="Enlarge star")
    enlarge.press("Enter")
    large = page.get_by_role("dialog", name="The picture, large")
    expect(large.get_by_role("img", name=re.compile("star"))).to_be_visible()
    assert large.get_by_role("img").bounding_box()["height"] > 700
    page.keyboard.press("Escape")
    expect(large).not_to_be_visible()
    expect(enlarge).to_be_focused()


def test_nothing_is_sent_without_a_prompt(open_page: Open):
    page, front = open_page()
    page.get_by_role("button", name="Generate").click()
    expect(problem(page)).to_have_text("Enter a prompt.")
    assert not front.asked
