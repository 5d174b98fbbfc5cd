"""`front`: its address, aliases, and what it says."""

from __future__ import annotations

from typing import Any

import pytest

import plugin.cli.front
from tests.support.commands import run
from tests.support.paths import ROOT

KEY = ROOT / "tests/support/tls/key.pem"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command would serve: application, host and port."""
    calls: list[Any] = []
    monkeypatch.setattr(plugin.cli.front, "_serve", lambda *arguments: calls.extend(arguments))
    return calls


def test_aliases_are_other_names_of_models(served):
    code, _ = run("front", "--alias", "gpt-image-2=emoji", "--alias", "dall-e-3=flux_dev")
    assert code == 0
    assert served[0].state.front.aliases == {"gpt-image-2": "emoji", "dall-e-3": "flux_dev"}


@pytest.mark.parametrize("alias", ["gpt-image-2", "=emoji", "gpt-image-2="])
def test_an_alias_needs_a_name_and_a_model(served, alias):
    code, output = run("front", "--alias", alias)
    assert code == 2
    assert f"{alias} is no alias, must be NAME=MODEL" in output
    assert not served


def test_it_fetches_from_where_it_is_told(served):
    places = ["https://cdn.example.com/pictures/", "http://10.0.0.1:8080/"]
    code, _ = run("front", "--fetch-from", places[0], "--fetch-from", places[1])
    assert code == 0
    assert [str(place.start) for place in served[0].state.front.fetch_from] == places


def test_and_by_itself_from_nowhere(served):
    run("front")
    assert served[0].state.front.fetch_from == ()


@pytest.mark.parametrize(("host", "address"), [("127.0.0.1", "127.0.0.1:9000"), ("::1", "[::1]:9000")])
def test_it_tells_its_address_as_browsers_take_it(served, host, address):
    _, output = run("front", "--host", host)
    assert f"http://{address} has a page, http://{address}/v1 OpenAI's API" in output
    assert served[1:] == [host, 9000]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--triton", "ftp://triton:8001"], "url is 'ftp://triton:8001', must be HOST:PORT of the server's gRPC"),
        (["--timeout", "-1"], "timeout_s is -1.0, must be a number of seconds of at least 0, or None"),
        (["--ca", str(KEY)], "must be a file with certificates in PEM"),
        (["--ca", "nowhere.pem"], "nowhere.pem"),
        (["--fetch-from", "https://cdn.example.com/a"], "fetch_from is https://cdn.example.com/a, must be http:// or"),
    ],
)
def test_what_cannot_be_served_is_said_before_it_starts(served, arguments, sentence):
    code, output = run("front", *arguments)
    assert code == 1
    assert output.startswith("error: ")
    assert sentence in output
    assert not served
