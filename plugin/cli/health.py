"""`triton-taylorseer health`: whether a model makes pictures."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from plugin.cli.options import TRITON, Ca, Connection, Model, Tls, Url
from plugin.cli.terminal import fail, say

Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="Longest time that the check may take.")]


def health(url: Url = TRITON, model: Model = "emoji", timeout: Timeout = 15.0, tls: Tls = False, ca: Ca = None) -> None:
    """Checks that a model works, by making a picture of one step.

    Triton's own health endpoints stay green when a model's process has died. The picture is a plain call, which passes
    through both processes of a model. A full queue counts as healthy. The exit code is 0 for a healthy model, else 1.

    Examples:

      triton-taylorseer health --model flux_dev --timeout 30
    """
    from triton_taylorseer_client import GenerationError, Unavailable

    try:
        _make_a_picture(Connection(url, model, tls, ca), timeout)
    except Unavailable as error:
        if "try again in" not in str(error):  # what a model says whose queue is full
            fail(error)
    except (GenerationError, OSError, ValueError) as error:
        fail(error)
    say("healthy")


def _make_a_picture(connection: Connection, timeout_s: float) -> None:
    from triton_taylorseer_client import Client, InvalidArgument

    ends = time.monotonic() + timeout_s

    def generate(**subject: Any) -> None:
        left = max(0.0, ends - time.monotonic())
        client.generate(**subject, num_inference_steps=1, priority=60, timeout_s=left)

    with Client(**connection.arguments) as client:
        try:
            generate(prompt="health")
        except InvalidArgument as refusal:
            if str(refusal).startswith("input_image is missing"):
                left = max(0.0, ends - time.monotonic())
                generate(prompt="health", **_pictures(client.description(timeout_s=left)))
            else:  # a model that takes a class label
                generate(class_label=0)


def _pictures(description: Mapping[str, Any]) -> dict[str, Any]:
    """What a model begins with besides its prompt: as few and as small pictures as it takes."""
    import numpy as np

    task = min(description["tasks"], key=lambda task: task["input_image"]["min"])
    count, black = task["input_image"]["min"], np.zeros((16, 16, 3), np.uint8)
    if not count:
        return {}
    return {"input_image": [black] * count} | ({"mask_image": black} if task["mask_image"] else {})
