"""What autoscalers read: the plugin reports how long its queue is, Triton does not know of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.support import metrics
from tests.support.serving import Triton
from tests.support.waiting import wait_for

SLOTS = 8  # the shipped max_in_flight
STREAMS = 20
FIELDS = {"num_inference_steps": 20, "cache_interval": 1}


def test_the_plugin_reports_the_queue_that_triton_does_not_see(triton: Triton) -> None:
    triton.wait_until_idle()
    with triton.client() as client, ThreadPoolExecutor(STREAMS) as pool:
        streams = [pool.submit(lambda: list(client.stream("red apple, 3d", **FIELDS))) for _ in range(STREAMS)]
        wait_for(
            lambda: triton.metrics()["taylorseer_requests_waiting"] == STREAMS - SLOTS,
            "all but those with a slot are queued",
            timeout_s=10,
        )
        assert triton.metrics()["taylorseer_requests_in_flight"] == SLOTS
        held_back = "nv_inference_pending_request_count"  # by Triton itself
        assert metrics.value(triton.server.metrics_url, held_back, model="emoji_stream") == 0
        heard = [stream.result() for stream in streams]
    places = sorted(max(each.queue_position for each in updates[:-1]) for updates in heard)
    assert places == [*[0] * SLOTS, *range(1, STREAMS - SLOTS + 1)]
    for updates in heard:
        told = [each.queue_position for each in updates[:-1]]
        assert told == sorted(told, reverse=True), "nobody overtakes"
        assert told[-1] == 0
    assert triton.wait_until_idle()["taylorseer_requests_waiting"] == 0
