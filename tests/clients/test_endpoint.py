"""Where the clients connect to: URLs as people write them, proxies in the environment, TLS, ports of another kind."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.both_clients import CLIENTS
from tests.support.commands import run
from tests.support.fake_triton import Picture, Step, fake_triton
from triton_taylorseer_client import Client, Generation, Unavailable
from triton_taylorseer_client.endpoint import Endpoint
from triton_taylorseer_client.messages import channel_arguments

TLS = Path(__file__).parents[1] / "support/tls"
CERTIFICATE = TLS / "certificate.pem"  # its own authority
MUST = "must be HOST:PORT of the server's gRPC, for example localhost:8001"


@pytest.mark.parametrize(
    ("url", "target", "tls"),
    [
        ("localhost:8001", "localhost:8001", False),
        (" localhost:8001\n", "localhost:8001", False),
        ("localhost:8001/", "localhost:8001", False),
        ("http://localhost:8001", "localhost:8001", False),
        ("HTTP://localhost:8001/", "localhost:8001", False),
        ("grpc://triton.internal:8001", "triton.internal:8001", False),
        ("https://triton.example", "triton.example:443", True),
        ("grpcs://triton.example:8001", "triton.example:8001", True),
        ("http://[::1]:8001", "[::1]:8001", False),
        ("[fe80::1%eth0]:8001", "[fe80::1%eth0]:8001", False),
        ("dns:///triton:8001", "dns:///triton:8001", False),
        ("ipv4:10.0.0.1:8001,10.0.0.2:8001", "ipv4:10.0.0.1:8001,10.0.0.2:8001", False),
        ("ipv6:[::1]:8001", "ipv6:[::1]:8001", False),
        ("unix:/run/triton.sock", "unix:/run/triton.sock", False),
        ("dns:8001", "dns:8001", False),
    ],
)
def test_a_url_is_read(url: str, target: str, tls: bool):
    assert Endpoint.of(url) == Endpoint(target, tls)
    assert Endpoint.of(target, tls=True) == Endpoint(target, True)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", f"url is '', {MUST}"),
        ("localhost", f"url is 'localhost', {MUST}"),
        ("http://localhost", f"url is 'http://localhost', {MUST}"),
        ("localhost:", f"url is 'localhost:', {MUST}"),
        (":8001", f"url is ':8001', {MUST}"),
        ("localhost:http", f"url is 'localhost:http', {MUST}"),
        ("localhost:99999", f"url is 'localhost:99999', {MUST}"),
        ("localhost:0", f"url is 'localhost:0', {MUST}"),
        ("http://localhost:8000/v2", f"url is 'http://localhost:8000/v2', {MUST}"),
        ("me:secret@triton:8001", f"url is 'me:secret@triton:8001', {MUST}"),
        ("::1:8001", f"url is '::1:8001', {MUST}: an IPv6 address stands in brackets, as in [::1]:8001"),
        ("ftp://triton:8001", f"url is 'ftp://triton:8001', {MUST}: 'ftp' is none of the schemes http, https, grpc, "),
        (8001, f"url is 8001, {MUST}"),
        (None, f"url is None, {MUST}"),
    ],
)
@pytest.mark.parametrize("kind", CLIENTS)
def test_another_url_is_told_before_anything_is_sent(kind: str, url: Any, sentence: str):
    with pytest.raises(ValueError, match="url is ") as caught:
        CLIENTS[kind](url)
    assert str(caught.value).startswith(sentence)


def test_the_command_line_takes_and_tells_urls_too(tmp_path: Path):
    with fake_triton(answering) as url:
        code, output = run("generate", "star", "--url", f"grpc://{url}/", "-o", tmp_path / "a.png")
    assert (code, (tmp_path / "a.png").exists()) == (0, True), output
    code, output = run("generate", "star", "--url", "localhost")
    assert code == 1
    assert f"error: url is 'localhost', {MUST}" in output
    (tmp_path / "prompts.txt").write_text("star\n")
    code, output = run("generate", "--batch", tmp_path / "prompts.txt", "--url", "localhost", "-o", tmp_path)
    assert code == 1
    assert f"error: url is 'localhost', {MUST}" in output


def answering(call: Any) -> Iterator[Any]:
    yield Step(1, 2)
    yield Picture({"seed": 3, "num_steps": 2, "full_steps": [0], "total_s": 0.1, "parameters": sorted(call.parameters)})


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("scheme", ["http://", "grpc://", "ipv4:"])
def test_a_scheme_is_taken_off(kind: str, scheme: str):
    with fake_triton(answering) as url, CLIENTS[kind](f"{scheme}{url}") as client:
        assert isinstance([*client.stream("star")][-1], Generation)


# A proxy of the environment


@pytest.mark.parametrize(
    ("url", "is_local"),
    [
        ("localhost:8001", True),
        ("LOCALHOST:8001", True),
        ("127.0.0.1:8001", True),
        ("http://127.8.9.1:8001", True),
        ("[::1]:8001", True),
        ("unix:/run/triton.sock", True),
        ("unix-abstract:triton", True),
        ("dns:///localhost:8001", True),
        ("dns://8.8.8.8/localhost:8001", True),
        ("ipv4:127.0.0.1:8001,127.0.0.2:8001", True),
        ("ipv6:[::1]:8001", True),
        ("ipv4:127.0.0.1:8001,10.0.0.2:8001", False),
        ("triton:8001", False),
        ("10.0.0.1:8001", False),
        ("localhost.example:8001", False),
        ("127.0.0.1.example:8001", False),
        ("dns:///triton:8001", False),
    ],
)
def test_what_stays_on_this_machine_takes_no_proxy(url: str, is_local: bool):
    assert (("grpc.enable_http_proxy", 0) in channel_arguments(url)) == is_local


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_of_this_machine_is_reached_whatever_the_environment_names(kind, variable, host, monkeypatch):
    for each in ("http_proxy", "https_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with fake_triton(answering) as url, CLIENTS[kind](url.replace("127.0.0.1", host)) as client:
        assert isinstance([*client.stream("star", timeout_s=20)][-1], Generation)


# Ports of another kind


@pytest.fixture
def web() -> Iterator[str]:
    """A server of HTTP/1.1, as Triton's port 8000."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("way", ["plain", "stream"])
def test_a_port_of_http_is_told(web: str, kind: str, way: str):
    sentence = f"what listens at {web} does not speak gRPC: name the server's gRPC port, by default 8001"
    with CLIENTS[kind](web) as client, pytest.raises(Unavailable) as caught:
        client.generate("star") if way == "plain" else list(client.stream("star"))
    assert str(caught.value) == sentence


# TLS


@contextmanager
def tls_server(host: str) -> Iterator[str]:
    key = (TLS / "key.pem").read_bytes()
    credentials = grpc.ssl_server_credentials([(key, CERTIFICATE.read_bytes())])
    with fake_triton(answering, credentials=credentials, host=host) as url:
        yield url


@pytest.fixture
def locked() -> Iterator[str]:
    """A server with TLS."""
    with tls_server("localhost") as url:
        yield url


@pytest.mark.parametrize("kind", CLIENTS)
def test_tls_with_a_file_of_authorities(kind: str, locked: str):
    for options in ({"url": locked}, {"url": locked, "ssl": True}, {"url": f"grpcs://{locked}"}):
        with CLIENTS[kind](**options, root_certificates=CERTIFICATE) as client:
            assert isinstance([*client.stream("star")][-1], Generation)


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize(
    ("host", "options", "sentence"),
    [
        ("localhost", {"ssl": True}, "the certificate of {} is not trusted: name the file of its authority"),
        ("localhost", {}, "what listens at {} closes the connection: it may need TLS (ssl, --tls)"),
        ("127.0.0.2", {"root_certificates": CERTIFICATE}, "the certificate of {} is for another host name"),
    ],
)
def test_what_is_wrong_with_tls_is_told(kind: str, host: str, options: dict[str, Any], sentence: str):
    with tls_server(host) as url, CLIENTS[kind](url, **options) as client, pytest.raises(Unavailable) as caught:
        list(client.stream("star"))
    assert str(caught.value).startswith(sentence.format(url))


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_server_without_tls_is_told(kind: str):
    with fake_triton() as plain, CLIENTS[kind](plain, ssl=True) as client, pytest.raises(Unavailable) as caught:
        list(client.stream("star"))
    assert str(caught.value) == f"what listens at {plain} does not speak TLS: connect without it"


def test_a_file_that_holds_no_certificate_is_told(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pem"):
        Client(root_certificates=tmp_path / "nowhere.pem")
    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(ValueError, match=r"root_certificates is .*key\.pem, must be a file with certificates in PEM"):
        Client(root_certificates=tmp_path / "key.pem")


def test_the_command_line_speaks_tls(locked: str, tmp_path: Path):
    picture = tmp_path / "a.png"
    code, output = run("generate", "star", "--url", locked, "--ca", CERTIFICATE, "-o", picture)
    assert (code, picture.exists()) == (0, True), output
    (tmp_path / "prompts.txt").write_text("star\n")
    batch = ["--batch", tmp_path / "prompts.txt", "-o", tmp_path / "pictures"]
    code, output = run("generate", *batch, "--url", locked, "--tls", "--ca", CERTIFICATE)
    assert (code, len([*(tmp_path / "pictures").iterdir()])) == (0, 1), output
    code, output = run("generate", "star", "--url", locked, "--tls", "--retries", 0, "-o", picture)
    assert code == 1
    assert f"error: the certificate of {locked} is not trusted" in output
