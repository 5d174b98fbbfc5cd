"""What a model says of itself, as both clients read it."""

from __future__ import annotations

from typing import Any

import pytest

from plugin import tensors
from tests.support.both_clients import CLIENTS
from tests.support.fake_triton import Failure, fake_triton
from triton_taylorseer_client import GenerationError, InvalidArgument, Unavailable
from triton_taylorseer_client.messages import DESCRIBE_PARAMETER

DESCRIPTION = {
    "pipeline": "FluxPipeline",
    "tasks": [
        {"pipeline": "FluxPipeline", "input_image": {"min": 0, "max": 0}, "mask_image": False, "strength": None},
        {"pipeline": "FluxImg2ImgPipeline", "input_image": {"min": 1, "max": 1}, "mask_image": False, "strength": 0.6},
    ],
}


@pytest.fixture(params=list(CLIENTS))
def client_class(request: pytest.FixtureRequest) -> Any:
    return CLIENTS[request.param]


def test_the_parameter_is_that_of_the_server():
    assert DESCRIBE_PARAMETER == tensors.DESCRIBE_PARAMETER


def test_a_description_is_what_the_model_answers(client_class):
    with fake_triton(description=DESCRIPTION) as url, client_class(url) as client:
        assert client.description() == DESCRIPTION


@pytest.mark.parametrize(
    ("code", "kind", "sentence"),
    [
        ("INVALID_ARG", InvalidArgument, "prompt is missing"),  # a server that does not know the parameter
        ("UNAVAILABLE", Unavailable, "the model failed"),
    ],
)
def test_errors_are_those_of_a_stream(client_class, code, kind, sentence):
    with fake_triton(description=Failure(code, sentence)) as url, client_class(url) as client:
        with pytest.raises(GenerationError, match=sentence) as caught:
            client.description()
        assert type(caught.value) is kind


def test_no_server_is_told(client_class):
    with (
        client_class("127.0.0.1:1") as client,
        pytest.raises(Unavailable, match=r"no server answers at 127\.0\.0\.1:1"),
    ):
        client.description()
