"""What autoscalers read: the plugin tells how long its line is, Triton does not know of it."""

from __future__ import annotations

import re
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from tests.support.serving import Triton

SLOTS = 8  # the shipped max_in_flight
STREAMS = 20


def pending(triton: Triton) -> float:
    """Requests that Triton itself holds back for the model."""
    with urllib.request.urlopen(triton.server.metrics_url, timeout=10) as answer:
        text = answer.read().decode()
    (value,) = re.findall(r'^nv_inference_pending_request_count\{model="emoji_stream",.*\} (\S+)$', text, re.MULTILINE)
    return float(value)


def test_the_plugin_tells_the_line_that_triton_does_not_see(triton: Triton) -> None:
    triton.wait_until_idle()
    with triton.client() as client, ThreadPoolExecutor(STREAMS) as pool:
        streams = [pool.submit(lambda: list(client.stream("red apple, 3d", cache_interval=1))) for _ in range(STREAMS)]
        deadline = time.monotonic() + 10
        while (metrics := triton.metrics())["taylorseer_requests_waiting"] < STREAMS - SLOTS:
            assert time.monotonic() < deadline, "all but those with a slot must wait"
            time.sleep(0.05)
        assert metrics["taylorseer_requests_in_flight"] == SLOTS
        assert pending(triton) == 0
        for stream in streams:
            stream.result()
    assert triton.wait_until_idle()["taylorseer_requests_waiting"] == 0
