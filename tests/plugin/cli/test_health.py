"""`health`: a model is healthy if it makes a picture, or says when it will have room for one."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.support.commands import run
from triton_taylorseer_client import Client, GenerationError, InvalidArgument, Unavailable


def test_health_is_a_picture_of_one_step(server):
    assert run("health", "--url", server.grpc_url) == (0, "healthy\n")
    code, output = run("health", "--url", server.grpc_url, "--model", "nothing")
    assert code == 1
    assert "error:" in output
    code, output = run("health", "--url", "127.0.0.1:9", "--timeout", "5")
    assert code == 1
    assert "no server answers at 127.0.0.1:9" in output


@pytest.mark.parametrize(
    ("failure", "code", "output"),
    [
        (None, 0, "healthy"),
        (Unavailable("2 requests are running and 1 is queued: try again in 1.5 s"), 0, "healthy"),
        (
            Unavailable("Request for unknown model: 'emoji_stream' has no available versions"),
            1,
            "error: Request for unknown model",
        ),
        (GenerationError("Stub process 'emoji_0_0' is not healthy."), 1, "error: Stub process 'emoji_0_0' is not"),
    ],
)
def test_what_the_model_answers_decides(monkeypatch, failure, code, output):
    asked: list[dict[str, Any]] = []

    def generate(self: Client, prompt: str | None = None, **fields: Any) -> None:
        asked.append({"prompt": prompt, **fields})
        if failure is not None:
            raise failure

    monkeypatch.setattr(Client, "generate", generate)
    got = run("health", "--url", "127.0.0.1:9", "--timeout", 5)
    assert got[0] == code
    assert output in got[1]
    assert asked == [
        {"prompt": "health", "num_inference_steps": 1, "priority": 60, "timeout_s": pytest.approx(5, abs=1)}
    ]


def test_the_time_limit_holds_for_both_calls_to_a_model_of_class_labels(monkeypatch):
    left: list[float] = []

    def generate(self: Client, prompt: str | None = None, *, timeout_s: float, **fields: Any) -> None:
        left.append(timeout_s)
        if prompt is not None:
            time.sleep(0.3)
            raise InvalidArgument("prompt is given, must be left out: this model takes a class_label")
        assert fields["class_label"] == 0

    monkeypatch.setattr(Client, "generate", generate)
    assert run("health", "--url", "127.0.0.1:9", "--timeout", 5) == (0, "healthy\n")
    assert left[0] - left[1] == pytest.approx(0.3, abs=0.2)
