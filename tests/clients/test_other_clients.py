"""Programs that are not run here: their requests, as their sources send them, get pictures with one set of settings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from plugin.ops.server import Server
from tests.support.edits import ONE
from tests.support.fake_triton import fake_triton
from tests.support.front import running_front
from tests.support.other_clients import PROMPT, REPLAYED, SETTINGS, Emoji
from tests.support.other_clients_front import front_of_emoji


@pytest.fixture(scope="module")
def front() -> Iterator[tuple[str, Emoji]]:
    with front_of_emoji() as both:
        yield both


@pytest.mark.parametrize("name", REPLAYED)
def test_each_gets_a_picture(front, name):
    url, emoji = front
    (picture,) = REPLAYED[name].sent(url)
    assert (picture.format, picture.size) == ("PNG", (6, 4)), "what the pretended model makes"
    assert emoji.last["prompt"] == PROMPT
    if "edit" in name:
        assert emoji.last["input_image"] == [ONE]


LARGE = [name for name, each in REPLAYED.items() if any(size in str(each.body) for size in ("1024", "512"))]


@pytest.mark.parametrize("name", LARGE)
def test_the_size_of_the_settings_replaces_theirs(front, name):
    url, emoji = front
    REPLAYED[name].sent(url)
    assert (emoji.last["width"], emoji.last["height"]) == (64, 64)


@pytest.mark.parametrize("name", LARGE)
def test_without_it_they_are_told_why(name):
    settings = {"default_model": "emoji", "aliases": dict.fromkeys(SETTINGS["aliases"], "emoji")}
    with (
        fake_triton(Emoji()) as triton,
        running_front(triton, **settings) as url,
        pytest.raises(AssertionError, match="must be a multiple of 8 from 32 to 128"),
    ):
        REPLAYED[name].sent(url)


def test_each_gets_a_picture_from_a_real_triton(echo: Server):
    """Throwaway models, which make any size; the emoji model's is test_other_clients_emoji.py."""
    with running_front(echo.grpc_url, **SETTINGS) as url:
        for name, each in REPLAYED.items():
            (picture,) = each.sent(url)
            assert picture.size == (6, 4), name
