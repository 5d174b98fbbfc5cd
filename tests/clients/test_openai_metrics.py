"""The front's own metrics, as Prometheus' own parser reads them."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from clients.openai_api import MAX_BODY_BYTES
from tests.support.edits import ONE, ask, data_url
from tests.support.fake_triton import Call, Failure, Picture, Step, fake_triton, four_steps
from tests.support.front import running_front
from tests.support.waiting import wait_for

Samples = dict[tuple[str, str, str], float]


def behaviour(call: Call) -> Iterator[Step | Picture | Failure]:
    if call.fields["prompt"] == "small":
        yield Failure("INVALID_ARG", "height is 1024, must be a multiple of 8 from 32 to 128")
    else:
        yield from four_steps(call)


@pytest.fixture
def url() -> Iterator[str]:
    with fake_triton(behaviour) as triton, running_front(triton) as url:
        yield url


def get(url: str, path: str = "/metrics", **headers: str) -> tuple[int, str, str]:
    """Status, type and text."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, answer.headers["content-type"], text


def samples(url: str) -> Samples:
    """(name, endpoint, status) -> value; of a histogram its count and its sum."""
    found: Samples = {}
    for family in text_string_to_metric_families(get(url)[2]):
        for sample in family.samples:
            if "le" not in sample.labels:
                labels = sample.labels
                found[sample.name, labels.get("endpoint", ""), labels.get("status", "")] = sample.value
    return found


def requests(url: str) -> dict[tuple[str, str], float]:
    """(endpoint, status) -> requests, without those for the metrics themselves."""
    named = {key[1:]: value for key, value in samples(url).items() if key[0] == "taylorseer_front_requests_total"}
    return {key: value for key, value in named.items() if key[0] != "/metrics"}


def generate(url: str, **fields: Any) -> int:
    return ask(url, json.dumps({"prompt": "star", **fields}), "application/json", "/v1/images/generations")[0]


def get_stream(url: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    body = json.dumps({"prompt": "star", "stream": True})
    connection.request("POST", "/v1/images/generations", body, {"Content-Type": "application/json"})
    connection.getresponse().read()
    connection.close()


def test_requests_are_counted_by_endpoint_and_status(url):
    get_stream(url)
    for fields in ({}, {}, {"n": 99}, {"prompt": "small"}, {"model": "unicorn"}):
        generate(url, **fields)
    for path in ("/v1/models/emoji", "/v1/models/unicorn", "/healthz", "/", "/nowhere", "/v1/models/"):
        get(url, path)
    ask(url, b" " * (MAX_BODY_BYTES + 1), "application/json", "/v1/images/generations")
    generations = "/v1/images/generations"
    assert requests(url) == {
        (generations, "200"): 3,
        (generations, "400"): 2,
        (generations, "404"): 1,
        (generations, "413"): 1,
        ("/v1/models/{name}", "200"): 1,
        ("/v1/models/{name}", "404"): 1,
        ("/v1/models", "200"): 1,
        ("/healthz", "200"): 1,
        ("other", "200"): 1,
        ("other", "404"): 1,
    }


def test_names_of_clients_make_no_new_series(url):
    for number in range(20):
        get(url, f"/v1/models/unicorn-{number}")
        get(url, f"/nowhere/{number}")
    assert set(requests(url)) == {("/v1/models/{name}", "404"), ("other", "404")}


def test_seconds_are_those_until_the_answer_has_ended():
    ends = threading.Event()

    def slow(_: Call) -> Iterator[Step | Picture]:
        yield Step(1, 4)
        ends.wait(20)
        yield Picture({"seed": 3})

    with fake_triton(slow) as triton, running_front(triton) as url:
        thread = threading.Thread(target=get_stream, args=(url,))
        thread.start()
        in_flight = ("taylorseer_front_requests_in_flight", "", "")
        wait_for(lambda: samples(url)[in_flight] == 2, "the stream and the metrics are in flight")
        threading.Event().wait(0.3)
        ends.set()
        thread.join(20)
        seconds = "taylorseer_front_request_seconds"
        wait_for(lambda: samples(url).get((f"{seconds}_count", "/v1/images/generations", "")) == 1, "it has ended")
        told = samples(url)
        assert 0.3 <= told[f"{seconds}_sum", "/v1/images/generations", ""] < 20
        assert told[in_flight] == 1, "the request for the metrics itself"


def test_a_client_that_leaves_is_counted_as_one():
    begun = threading.Event()

    def never(_: Call) -> Iterator[Step]:
        yield Step(1, 4)
        begun.set()
        threading.Event().wait(5)

    with fake_triton(never) as triton, running_front(triton) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
        connection.request(
            "POST", "/v1/images/generations", json.dumps({"prompt": "star"}), {"Content-Type": "application/json"}
        )
        assert begun.wait(20)
        connection.close()
        wait_for(lambda: requests(url) == {("/v1/images/generations", "499"): 1}, "the client's leaving is seen")


def test_held_bytes_are_the_bodies_of_requests_in_flight():
    begun, ends = threading.Event(), threading.Event()

    def slow(_: Call) -> Iterator[Step | Picture]:
        yield Step(1, 4)
        begun.set()
        ends.wait(20)
        yield Picture({"seed": 3})

    fields = {"prompt": "star", "image": data_url(ONE)}
    body = json.dumps(fields)
    with fake_triton(slow) as triton, running_front(triton) as url:
        thread = threading.Thread(target=ask, args=(url, body, "application/json"))
        thread.start()
        assert begun.wait(20)
        assert samples(url)["taylorseer_front_held_bytes", "", ""] == len(body)
        ends.set()
        thread.join(20)
        wait_for(lambda: samples(url)["taylorseer_front_held_bytes", "", ""] == 0, "nothing is held")


def test_no_key_is_asked_for_and_nothing_of_a_request_is_told():
    """Prometheus scrapes without one unless it is told otherwise; there are counts alone."""
    with fake_triton() as triton, running_front(triton, api_key="secret") as url:
        assert generate(url, prompt="a secret star") == 401
        status, kind, text = get(url)
    assert status == 200
    assert kind.startswith("text/plain; version=")
    assert "star" not in text
    assert "secret" not in text


def test_each_application_has_its_own():
    with fake_triton() as triton, running_front(triton) as one, running_front(triton) as other:
        generate(one)
        assert requests(one) == {("/v1/images/generations", "200"): 1}
        assert requests(other) == {}
