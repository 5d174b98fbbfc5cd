"""Pages from elsewhere: none may use the front unless it was told, seen from HTTP and from a browser."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

from clients.openai_api import MAX_BODY_BYTES, create_app
from tests.support.browser import needs_chromium, running_chromium
from tests.support.fake_triton import Call, Failure, Picture, Step, fake_triton, four_steps
from tests.support.front import running_app, running_front

PAGE = "https://app.example.com"
ASKING = """async ([front, key]) => {
  try {
    const answer = await fetch(front + "/v1/images/generations", {
      method: "POST",
      headers: { "Content-Type": "application/json", Authorization: "Bearer " + key, "X-Stainless-Lang": "js" },
      body: JSON.stringify({ prompt: "star" }),
    });
    const { data } = await answer.json();
    return { status: answer.status, id: answer.headers.get("x-request-id"), picture: data?.[0].b64_json };
  } catch (error) {
    return { failed: String(error) };
  }
}"""
ASKED = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-lang"}


def behaviour(call: Call) -> Iterator[Step | Picture | Failure]:
    if call.fields["prompt"] == "full":
        yield Failure("UNAVAILABLE", "1 requests are in flight and 1 wait: try again in 0.4 s")
    else:
        yield from four_steps(call)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with (
        fake_triton(behaviour) as triton,
        running_front(triton, api_key="secret", cors_origins=[PAGE, "http://localhost:3000"]) as url,
    ):
        yield url


def ask(url: str, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str]]:
    """Status and headers."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}


def generate(url: str, prompt: str = "star", **headers: str) -> tuple[int, dict[str, str]]:
    body = json.dumps({"prompt": prompt}).encode()
    sent = {"Content_Type": "application/json", "Authorization": "Bearer secret", "Origin": PAGE, **headers}
    return ask(url, "POST", "/v1/images/generations", body, **sent)


def test_a_video_may_be_deleted_by_a_page(url):
    status, _ = ask(url, "OPTIONS", "/v1/videos/1", Origin=PAGE, Access_Control_Request_Method="DELETE")
    assert status == 200
    assert ask(url, "OPTIONS", "/v1/videos/1", Origin=PAGE, Access_Control_Request_Method="PUT")[0] == 400


def test_a_preflight_needs_no_key(url):
    status, headers = ask(url, "OPTIONS", "/v1/images/generations", Origin=PAGE, **ASKED)
    assert status == 200
    assert headers["access-control-allow-origin"] == PAGE
    assert "POST" in headers["access-control-allow-methods"]
    assert headers["access-control-allow-headers"] == ASKED["Access-Control-Request-Headers"]


def test_answers_may_be_read_and_the_headers_that_clients_read(url):
    status, headers = generate(url)
    assert (status, headers["access-control-allow-origin"]) == (200, PAGE)
    exposed = headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "retry-after", "retry-after-ms", "x-should-retry"} == set(exposed)
    assert "access-control-allow-credentials" not in headers
    assert "origin" in headers["vary"].lower()


@pytest.mark.parametrize(
    ("expected", "call"),
    [
        (401, lambda url: generate(url, Authorization="Bearer wrong")),
        (503, lambda url: generate(url, "full")),
        (404, lambda url: ask(url, "GET", "/nowhere", Origin=PAGE)),
        (405, lambda url: ask(url, "GET", "/v1/images/generations", Origin=PAGE)),
        (413, lambda url: ask(url, "POST", "/v1/images/generations", b" " * (MAX_BODY_BYTES + 1), Origin=PAGE)),
    ],
)
def test_refusals_may_be_read_too(url, expected, call):
    status, headers = call(url)
    assert (status, headers["access-control-allow-origin"]) == (expected, PAGE)


def test_so_may_the_answer_of_a_front_that_fails(url, monkeypatch):
    monkeypatch.setattr("clients.openai_api.models.Json", None)
    status, headers = ask(url, "GET", "/healthz", Origin=PAGE)
    assert (status, headers["access-control-allow-origin"]) == (500, PAGE)


@pytest.mark.parametrize("origin", ["https://evil.example.com", "http://app.example.com", f"{PAGE}:8443", "null"])
def test_other_pages_may_not(url, origin):
    assert "access-control-allow-origin" not in generate(url, Origin=origin)[1]
    status, headers = ask(url, "OPTIONS", "/v1/images/generations", Origin=origin, **ASKED)
    assert status == 400
    assert "access-control-allow-origin" not in headers


def test_by_itself_no_page_may():
    with fake_triton() as triton, running_front(triton) as url:
        assert "access-control-allow-origin" not in generate(url)[1]
        status, headers = ask(url, "OPTIONS", "/v1/images/generations", Origin=PAGE, **ASKED)
    assert status == 405
    assert "access-control-allow-origin" not in headers


def test_all_pages_may_where_the_front_was_told_so():
    with fake_triton() as triton, running_front(triton, cors_origins=["*"]) as url:
        assert generate(url)[1]["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    "origin", ["app.example.com", "https://app.example.com/", "https://a:b@app.example.com", "ftp://a", "", "null"]
)
def test_what_is_no_origin_is_refused(origin):
    with pytest.raises(ValueError, match=r"cors_origin is .*, must be \* or scheme, host and port"):
        create_app(cors_origins=[origin])


@needs_chromium
def test_a_page_from_elsewhere_in_a_browser():
    """Chromium sends the preflight, and hides from the page what it may not read."""
    with (
        running_app(Starlette(routes=[Route("/", lambda _: HTMLResponse("<title>elsewhere</title>"))])) as page,
        fake_triton(behaviour) as triton,
        running_front(triton, api_key="secret", cors_origins=[page]) as told,
        running_front(triton, api_key="secret") as not_told,
        running_chromium() as browser,
    ):
        tab = browser.new_page()
        tab.goto(page)
        made, refused, hidden = (
            tab.evaluate(ASKING, [front, key]) for front, key in ((told, "secret"), (told, "no"), (not_told, "secret"))
        )
    assert base64.b64decode(made["picture"]).startswith(b"\x89PNG")
    assert (refused["status"], refused["id"][:4]) == (401, "req_")
    assert "TypeError" in hidden["failed"]
