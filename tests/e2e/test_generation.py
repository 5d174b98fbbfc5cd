"""Pictures through a real Triton: what comes back, and that company changes nothing."""

from __future__ import annotations

import base64
import io
import json
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from PIL import Image

from triton_taylorseer_client import Generation, GenerationError, Progress

# prompt, and what else a request says: different seeds, step counts, sizes and cache settings
MIXED: list[tuple[str, dict[str, Any]]] = [
    ("red apple, 3d", {"seed": 1}),
    ("sunflower, noto", {"seed": 2, "cache_interval": 1, "num_inference_steps": 12}),
    ("tiger face, twemoji", {"seed": 3, "cache_interval": 3, "cache_order": 2}),
    ("rocket, flat", {"seed": 4, "num_inference_steps": 28, "guidance_scale": 1.5}),
    ("cactus, fluent", {"seed": 5, "cache_predictor": "reuse", "cache_interval": 4}),
    ("penguin, 3d", {"seed": 6, "height": 32, "width": 128, "num_inference_steps": 20}),
    ("rainbow, noto", {"seed": 7, "negative_prompt": "cloud, noto", "num_inference_steps": 20}),
    ("octopus, flat", {"seed": 8, "cache_warmup_steps": 8, "cache_cooldown_steps": 2, "cache_max_error": 0.05}),
]


def post(triton, model: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(f"http://{triton.http_url}/v2/models/{model}/generate", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def test_plain_call_gives_a_picture_and_its_report(triton):
    with triton.client() as client:
        result = client.generate("red apple, 3d", seed=11)
    assert result.image.shape == (1, 64, 64, 3)
    assert result.image.dtype == np.uint8
    assert result.image.std() > 5, "a picture, not a grey square"
    report = result.report
    assert (report["num_steps"], report["seed"], report["engine"]) == (50, 11, "onnxruntime")
    assert report["queue_s"] + report["encode_s"] + report["denoise_s"] + report["decode_s"] == pytest.approx(
        report["total_s"], abs=1e-6
    )


def test_same_seed_gives_the_same_picture_over_every_way_in(triton):
    with triton.client() as client:
        expected = client.generate("red apple, 3d", seed=5).image
        *_, streamed = client.stream("red apple, 3d", seed=5)
        other = client.generate("red apple, 3d", seed=6).image
    assert isinstance(streamed, Generation)
    assert np.array_equal(streamed.image, expected)
    assert not np.array_equal(other, expected)

    inputs = [tritonclient.http.InferInput("prompt", [1], "BYTES"), tritonclient.http.InferInput("seed", [1], "INT64")]
    inputs[0].set_data_from_numpy(np.array([b"red apple, 3d"], dtype=object))
    inputs[1].set_data_from_numpy(np.array([5], dtype=np.int64))
    assert np.array_equal(triton.http.infer("emoji", inputs).as_numpy("image"), expected)

    answer = post(triton, "emoji", {"prompt": "red apple, 3d", "seed": 5, "response_format": "b64_json"})
    picture = Image.open(io.BytesIO(base64.b64decode(answer["b64_json"])))
    assert np.array_equal(np.asarray(picture), expected[0])
    assert json.loads(answer["report"])["seed"] == 5


def test_stream_tells_progress_in_order_and_previews_where_asked(triton):
    with triton.client() as client:
        *updates, result = client.stream("red apple, 3d", preview=True, cache_interval=1)
        *plain, _ = client.stream("red apple, 3d", num_inference_steps=10)
    assert isinstance(result, Generation)
    assert all(isinstance(update, Progress) for update in updates)
    steps = [update.step for update in updates]
    assert steps == sorted(set(steps))
    assert {update.num_steps for update in updates} == {50}
    previews = [update.preview for update in updates if update.preview is not None]
    assert len(previews) >= 5
    assert all(preview.shape == (64, 64, 3) for preview in previews)
    error = [np.abs(preview.astype(int) - result.image[0]).mean() for preview in (previews[0], previews[-1])]
    assert error[1] < error[0], "the last preview is nearer to the picture than the first"
    assert all(update.preview is None for update in plain)


def test_eight_requests_at_once_give_the_bytes_of_one_after_another(triton):
    with triton.client() as client:
        alone = [client.generate(prompt, **fields).image for prompt, fields in MIXED]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda each: client.generate(each[0], **each[1]).image, MIXED))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)
    triton.wait_until_idle()


def test_a_cancelled_and_a_failing_request_change_nothing_for_the_others(triton):
    """On the faulty model: two slots, so the survivors run beside a request that is cancelled and one that breaks."""
    prompts = ["red apple, 3d", "sunflower, noto"]
    with triton.client("faulty") as client:
        alone = [client.generate(prompt, seed=9, cache_interval=2).image for prompt in prompts]
    before = triton.wait_until_idle("faulty")

    failures: list[str] = []

    def cancel_half_way() -> None:
        with triton.client("faulty") as client:
            stream = client.stream("rocket, 3d", num_inference_steps=400, cache_interval=2)
            for update in stream:
                if isinstance(update, Progress) and update.step >= 20:
                    break
            stream.close()

    def fail() -> None:
        with triton.client("faulty") as client, pytest.raises(GenerationError, match="broke on purpose") as caught:
            client.generate("rocket, 3d", height=40)
        failures.append(str(caught.value))

    for troublemaker in (cancel_half_way, fail):
        thread = threading.Thread(target=troublemaker)
        thread.start()
        with triton.client("faulty") as client:
            together = [client.generate(prompt, seed=9, cache_interval=2).image for prompt in prompts]
        thread.join()
        for one, other in zip(alone, together, strict=True):
            assert np.array_equal(one, other)

    after = triton.wait_until_idle("faulty")
    assert len(failures) == 1
    outcomes = {
        name: after[f"taylorseer_requests_total {name}"] - before[f"taylorseer_requests_total {name}"]
        for name in ("ok", "cancelled", "error")
    }
    assert outcomes == {"ok": 4, "cancelled": 1, "error": 1}


def test_metrics_count_what_the_reports_tell(triton):
    before = triton.wait_until_idle()
    with triton.client() as client:
        reports = [client.generate("red apple, 3d", num_inference_steps=20, cache_interval=n).report for n in (1, 5)]
    after = triton.wait_until_idle()
    full = sum(len(report["full_steps"]) for report in reports)
    deadline_free = {
        "taylorseer_steps_total full": full,
        "taylorseer_steps_total forecast": 40 - full,
        "taylorseer_step_seconds_count full": full,
        "taylorseer_engine_batch_size_count": full,
        "taylorseer_requests_total ok": 2,
    }
    for name, difference in deadline_free.items():
        assert after[name] - before[name] == difference, name
