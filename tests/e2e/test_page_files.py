"""The settings in the files that the page saves: read by others, and by the page itself in a headless Chromium."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import needs_chromium
from tests.support.page import (
    FLUX,
    Open,
    begin,
    choose,
    drop,
    file_of,
    generate,
    pages_at_fronts,
    problem,
    saved,
    thumbs,
)

pytestmark = needs_chromium

KEYWORD = "triton-taylorseer"
PROMPT = 'a <b>"red"</b> apple & ]]> one\u00e9\nline, \U0001f34e\u0007'
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
HEAD = 33  # bytes of a PNG before its second chunk


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    with pages_at_fronts(browser) as opened:
        yield opened


def png(content: bytes, name: str = "apple.png") -> dict[str, Any]:
    return {"name": name, "mimeType": "image/png", "buffer": content}


def chunks_of(content: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG, whose checksums must be right, up to the file's end."""
    chunks, at = [], 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack(">I", content[at + 8 + length : at + 12 + length])
        assert checksum == zlib.crc32(kind + data)
        chunks.append((kind, data))
        at += 12 + length
    return chunks


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_text(text: bytes, head: bytes = b"\0\0\0\0\0") -> bytes:
    """A PNG with a text under the page's keyword; `head` is what a chunk has between the two."""
    content = file_of("one.png")["buffer"]
    return content[:HEAD] + chunk(b"iTXt", KEYWORD.encode() + head + text) + content[HEAD:]


def settings(**fields: Any) -> bytes:
    return with_text(json.dumps({"model": "flux", "fields": fields, "report": {}}).encode())


def offer(page: Page) -> Any:
    return page.get_by_role("group", name="Settings of a picture")


# What others read


def test_pillow_reads_the_settings_and_the_same_picture(open_page: Open):
    page, front = open_page()
    begin(page, PROMPT, Seed=2**53 + 1, Steps=9)
    _, content = saved(page)
    image = Image.open(io.BytesIO(content))
    image.load()
    told = json.loads(image.info[KEYWORD])
    fields = {"prompt": PROMPT, "num_inference_steps": 9, "size": "64x48", "seed": 2**53 + 1}
    assert told["model"] == "flux"
    assert told["fields"] == fields
    assert front.asked[0].fields == fields | {"model": "flux", "stream": True, "progress": True, "partial_images": 3}
    report = {"seed": 2**53 + 1, "num_steps": 8, "full_steps": [0], "total_s": 0.5, "engine": "pretended"}
    assert report.items() <= told["report"].items()
    colour = ((2**53 + 1) * 83 % 200, 140, 90)  # of the seed, as the pretended front has it
    assert image.getcolors() == [(64 * 48, colour)]
    assert image.info["parameters"].splitlines() == [
        *PROMPT.splitlines(),
        f"Steps: 9, Seed: {2**53 + 1}, Size: 64x48, Model: flux",
    ]
    kinds = [kind for kind, _ in chunks_of(content)]
    assert kinds == [b"IHDR", b"iTXt", b"iTXt", b"iTXt", b"IDAT", b"IEND"]


@pytest.mark.parametrize("edited", [False, True])
def test_an_xml_parser_reads_the_description(open_page: Open, edited: bool):
    page, _ = open_page()
    if edited:
        choose(page, file_of("one.png"))
    generate(page, PROMPT)
    image = Image.open(io.BytesIO(saved(page)[1]))
    packet = image.info["XML:com.adobe.xmp"]
    assert packet.startswith('<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>')
    tree = ElementTree.fromstring(packet)
    (description,) = tree.iterfind(f".//{{http://purl.org/dc/elements/1.1/}}description/{RDF}Alt/{RDF}li")
    assert description.text == PROMPT.replace("\u0007", ""), "XML has no such character"
    assert tree.findtext(".//{http://ns.adobe.com/xap/1.0/}CreatorTool") == "triton-taylorseer, flux"
    kind = tree.findtext(".//{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert str(kind).endswith("/compositeWithTrainedAlgorithmicMedia" if edited else "/trainedAlgorithmicMedia")


# What the page reads


def test_a_dropped_file_offers_its_settings_in_place_of_the_picture(open_page: Open):
    page, front = open_page()
    begin(page, PROMPT, Seed=2**53 + 1, Steps=9)
    name, content = saved(page)
    page.reload()
    expect(page.locator("figure.done")).to_have_count(1)
    drop(page, png(content, name))
    expect(thumbs(page)).to_have_count(1)
    expect(offer(page)).to_contain_text(f"seed {2**53 + 1}, flux")
    expect(page.locator("#news")).to_contain_text(f"{name} has its settings with it, which can be used")
    page.get_by_role("button", name="Use its settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    expect(thumbs(page)).to_have_count(0)
    expect(offer(page)).not_to_be_visible()
    page.keyboard.press("Control+Enter")
    expect(page.locator("figure.done")).to_have_count(2)
    assert front.asked[1] == front.asked[0]


def test_the_picture_can_be_an_input_all_the_same(open_page: Open):
    page, front = open_page()
    content = settings(prompt="star", seed=7)
    choose(page, png(content))
    page.get_by_role("button", name="Not now").click()
    expect(offer(page)).not_to_be_visible()
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    generate(page, "moon")
    assert front.asked[0].files["image"][0].content == content
    choose(page, png(content))
    expect(offer(page)).to_be_visible()
    page.get_by_role("button", name="Remove apple.png").click()
    expect(offer(page)).not_to_be_visible()


def test_the_settings_of_an_edit_name_what_it_was_made_from(open_page: Open):
    page, _ = open_page()
    choose(page, file_of("one.png"))
    page.get_by_role("slider", name="Strength").fill("0.7")
    generate(page, "star")
    _, content = saved(page)
    page.reload()
    choose(page, png(content))
    page.get_by_role("button", name="Use its settings").click()
    expect(problem(page)).to_have_text("It was made from one.png: choose that again.")
    choose(page, file_of("one.png"))
    expect(page.locator("#strength-number")).to_have_text("0.70")


def test_a_model_that_takes_no_pictures_takes_their_settings(open_page: Open):
    page, front = open_page({"emoji": None, "flux": FLUX})
    drop(page, png(settings(prompt="star", seed=7, size="96x64")))
    expect(problem(page)).not_to_be_visible()
    page.get_by_role("button", name="Use its settings").click()
    expect(page.get_by_label("Model")).to_have_value("flux")
    generate(page, "star")
    assert front.asked[0].fields["size"] == "96x64"
    drop(page, png(with_text(b'{"model": "gone", "fields": {"prompt": "moon"}}')))
    page.get_by_role("button", name="Use its settings").click()
    expect(problem(page)).to_have_text("gone is not ready here: its settings are in the form of another model.")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("moon")


PLAIN = file_of("one.png")["buffer"]
DEEP = b'{"fields": {"prompt": "x"}, "more": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
CANNOT_BE_SHOWN = "a length beyond the end"
DAMAGED = "a wrong checksum"  # which the browser shows nevertheless, and Pillow does not
HOSTILE = {
    CANNOT_BE_SHOWN: PLAIN[:HEAD] + b"\xff\xff\xff\xffiTXt" + KEYWORD.encode() + b"\0\0\0\0\0{}" + PLAIN[HEAD:],
    DAMAGED: settings(prompt="star").replace(b'"star"', b'"moon"'),
    "a compressed text": with_text(zlib.compress(b'{"fields": {"prompt": "x"}}'), b"\0\1\0\0\0"),
    "no end of the languages": with_text(b"", b"\0\0\0de"),
    "no UTF-8": with_text(b'{"fields": {"prompt": "\xff"}}'),
    "no JSON": with_text(b'{"fields": {"prompt": '),
    "a list": with_text(b'[{"fields": {"prompt": "star"}}]'),
    "null": with_text(b"null"),
    "fields that are a list": with_text(b'{"fields": ["prompt", "star"]}'),
    "wrong types": settings(prompt=["star"], seed=-1, size="axb", width="64", strength=True, cache_interval={"a": 1}),
    "unknown fields": settings(onload="alert(1)", innerHTML="<b>", __proto__=1, action="http://example.org"),
    "deep": with_text(DEEP),
    "huge": settings(prompt="x" * 200_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_without_proper_settings_is_a_picture_like_others(open_page: Open, name: str):
    page, front = open_page()
    choose(page, png(HOSTILE[name]))
    if name == CANNOT_BE_SHOWN:
        expect(problem(page)).to_have_text("apple.png cannot be read as a picture.")
    else:
        expect(thumbs(page)).to_have_count(1)
    if name not in (CANNOT_BE_SHOWN, DAMAGED):
        generate(page)
        assert front.asked[0].path == "/v1/images/edits"
    expect(offer(page)).not_to_be_visible()


def test_a_file_that_is_cut_off_anywhere_breaks_nothing(open_page: Open):
    page, _ = open_page()
    content = settings(prompt="star")
    # The module that reads texts, alone: the browser itself refuses such pictures.
    read = """async ([bytes, lengths]) => {
        const { settingsIn } = await import("/metadata.js");
        const files = lengths.map((length) => new File([new Uint8Array(bytes.slice(0, length))], "apple.png"));
        return Promise.all(files.map(settingsIn));
    }"""
    ends = HEAD + len(settings(prompt="star")) - len(PLAIN)
    lengths = [*range(ends + 1)]
    *none, whole = page.evaluate(read, [list(content), lengths])
    assert set(map(str, none)) == {"None"}
    assert whole == {"model": "flux", "fields": {"prompt": "star"}, "sources": []}


def test_what_a_file_says_is_text_and_bounded_by_the_form(open_page: Open):
    page, front = open_page()
    markup = "<img src=x onerror=\"document.title='gone'\">"
    fields = {"prompt": markup, "seed": 7, "cache_predictor": markup, "cache_preset": markup, "width": 1e300}
    content = with_text(json.dumps({"model": markup, "fields": fields, "sources": [markup, 5, None]}).encode())
    choose(page, png(content, f"{markup[:20]}.png"))
    page.get_by_role("button", name="Use its settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(markup)
    expect(problem(page)).to_have_text(f"{markup} is not ready here: its settings are in the form of another model.")
    page.get_by_role("button", name="Generate").click()
    assert not page.get_by_label("Width", exact=True).evaluate("field => field.validity.valid")
    assert page.locator("img[src=x]").count() == 0
    assert page.title() == "triton-taylorseer"
    assert not front.asked
