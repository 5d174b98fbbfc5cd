"""What stays in the environment: headers and certificates, and to whom they go."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from tests.support.comfyui.behaviours import of_seed
from tests.support.comfyui.prompts import pictures_of
from tests.support.fake_triton import fake_triton

TLS = Path(__file__).parents[2] / "support/tls"
SECRET = "Bearer of-nobody-else"
HEADERS = json.dumps({"Authorization": SECRET})


def test_headers_go_to_the_servers_of_the_environment_alone(start):
    heard = {}

    def behaviour(name):
        def behave(call):
            heard[name] = call.headers
            yield from of_seed(call)

        return behave

    with fake_triton(behaviour("ours")) as ours, fake_triton(behaviour("theirs")) as theirs:
        ui = start(ours, TRITON_TAYLORSEER_HEADERS=HEADERS)
        for url in (ours, theirs):
            ui.run(pictures_of(ui, "TextToImage", url, prompt="star", width=64, height=64)).output("make")
    assert heard["ours"]["authorization"] == SECRET
    assert "authorization" not in heard["theirs"], "a workflow of somebody else must not carry a key away"


def test_no_secret_is_in_a_file_a_report_or_what_the_page_is_told(start):
    with fake_triton(of_seed) as url:
        ui = start(url, TRITON_TAYLORSEER_HEADERS=HEADERS)
        prompt = pictures_of(ui, "TextToImage", url, prompt="star", width=64, height=64)
        run = ui.run(prompt, {"nodes": []})
    told = repr((prompt, run.outputs, run.messages, ui.object_info(), run.outputs["server"][0][0]))
    assert SECRET not in told


def test_tls_is_by_the_url_and_its_authorities_by_the_environment(start):
    key, certificate = (TLS / "key.pem").read_bytes(), (TLS / "certificate.pem").read_bytes()
    credentials = grpc.ssl_server_credentials([(key, certificate)])
    with fake_triton(of_seed, credentials=credentials, host="localhost") as url, fake_triton(of_seed) as plain:
        ui = start(f"grpcs://{url}", TRITON_TAYLORSEER_CA=str(TLS / "certificate.pem"))
        for server in (f"grpcs://{url}", plain):
            run = ui.run(pictures_of(ui, "TextToImage", server, prompt="star", width=64, height=64))
            assert run.ended == "execution_success", run.error


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"TRITON_TAYLORSEER_HEADERS": SECRET}, "TRITON_TAYLORSEER_HEADERS must be a JSON object of texts"),
        ({"TRITON_TAYLORSEER_HEADERS": '{"a": 1}'}, "TRITON_TAYLORSEER_HEADERS must be a JSON object of texts"),
        ({"TRITON_TAYLORSEER_URL": "localhost"}, "TRITON_TAYLORSEER_URL: url is 'localhost', must be HOST:PORT"),
        ({"TRITON_TAYLORSEER_CA": __file__}, "root_certificates is .*, must be a file with certificates in PEM"),
    ],
)
def test_a_wrong_variable_is_told_when_comfyui_loads_the_nodes(start, environment, sentence):
    with pytest.raises(ValueError, match=sentence) as refusal:
        start(**{"url": "localhost:8001", **environment})
    assert SECRET not in str(refusal.value)


def test_urls_stand_on_lines_or_between_commas_each_once(module):
    urls_of = module("settings").urls_of
    assert urls_of(" a:1\nb:2, c:3 a:1\r\n\n") == ("a:1", "b:2", "c:3")
