"""Many requests at once through a real Triton: equal to each alone, within memory, fair, and undisturbed by faults."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from benchmarks import soak
from clients import Cancelled, Client, DeadlineExceeded, Generation, GenerationError, InvalidArgument, Unavailable
from tests.support.repository import copy_model
from tests.support.serving import Triton, running
from tests.support.waiting import wait_for

PROMPTS = ("red apple, 3d", "blue car, flat", "cat face, 3d", "cactus, flat", "pizza, 3d")
SIZES = ((64, 64), (48, 80), (80, 48), (32, 32), (40, 96))  # 48x80 and 80x48 have as many tokens


SAMPLING_MODEL = '''
"""The emoji model, whose engine looks at every call whether all caches together are within the budget."""

from plugin.triton_model import StreamModel
from tests.support.engines import GuardedEngine


class TritonPythonModel(StreamModel):
    def load_host(self):
        host = super().load_host()
        host.engines["transformer"] = GuardedEngine(host.engines["transformer"], self.check_budget)
        return host

    def check_budget(self, _):
        held = sum(job.cache_bytes for job in list(self.answers.jobs))
        if held > self.admission.budget_bytes or self.admission.held_bytes > self.admission.budget_bytes:
            raise RuntimeError(f"{held} bytes of caches, {self.admission.held_bytes} set aside: over the budget")
'''


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """The shipped model as it is; `packed`, with one lane; `fixed`, whose engine calls always have four rows; `small`,
    with 3 slots, a line of 6 and a budget of a few requests; `hurried`, with one slot and a policy for its line of 8;
    and `sampled`, with a budget of a few requests that its engine looks after."""
    folder = tmp_path_factory.mktemp("many") / "models"
    folder.mkdir()
    copy_model(folder, "emoji")
    copy_model(folder, "packed", engine_lanes="1", max_batch="4")
    copy_model(folder, "fixed", fixed_batch="4")
    copy_model(folder, "small", max_in_flight="3", max_waiting="6", memory_budget_mib="2", max_cache_interval="12")
    hurried = {"max_in_flight": "1", "max_waiting": "8", "max_cache_interval": "8", "stretch_from_waiting": "2"}
    copy_model(folder, "hurried", cache_preset="default", cache_interval="3", **hurried)
    copy_model(folder, "sampled", max_in_flight="12", memory_budget_mib="2")
    (folder / "sampled_stream/1/model.py").write_text(SAMPLING_MODEL)
    with running(folder) as triton:
        yield triton


def some_requests(count: int, seed: int) -> list[dict[str, Any]]:
    """Requests of mixed sizes, steps, cache settings, guidance and priorities."""
    chance = random.Random(seed)
    requests = []
    for number in range(count):
        height, width = chance.choice(SIZES)
        request: dict[str, Any] = {
            "prompt": chance.choice(PROMPTS),
            "seed": number,
            "height": height,
            "width": width,
            "num_inference_steps": chance.randint(3, 20),
            "cache_interval": chance.choice((1, 2, 3, 5)),
            "cache_order": chance.randint(0, 2),
            "cache_warmup_steps": chance.randint(0, 3),
            "priority": chance.randint(-2, 2),
        }
        if chance.random() < 0.2:
            request["negative_prompt"] = "blurry"
        if chance.random() < 0.2:
            request |= {"cache_interval": 6, "cache_max_error": 0.05, "cache_max_full_steps": 12}
        requests.append(request)
    return requests


def all_at_once(client: Client, requests: list[dict[str, Any]]) -> list[Generation]:
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda request: client.generate(**request), requests))


@pytest.mark.parametrize(("model", "levels"), [("fixed", 0), ("packed", 2), ("emoji", 2)])
def test_mixed_requests_at_once_are_what_each_is_alone(many: Triton, model: str, levels: int) -> None:
    """The same bits where every call has as many rows. Elsewhere the engine's kernels may round otherwise at another
    batch: 1e-6 of the features, which moves a pixel by a level or two of 255."""
    requests = some_requests(32, seed=1)
    with many.client(model) as client:
        alone = [client.generate(**request) for request in requests]
        before = many.wait_until_idle(model)
        together = all_at_once(client, requests)
        after = many.wait_until_idle(model)
    for one, other in zip(alone, together, strict=True):
        difference = np.abs(one.image.astype(int) - other.image.astype(int))
        assert difference.max() <= levels
        assert one.report["full_steps"] == other.report["full_steps"]
        assert one.report["engine_calls"] == other.report["engine_calls"]
    calls = after["taylorseer_engine_batch_size_count"] - before["taylorseer_engine_batch_size_count"]
    jobs = after["taylorseer_engine_batch_size_sum"] - before["taylorseer_engine_batch_size_sum"]
    assert jobs == sum(each.report["engine_calls"] for each in together), "every full step is in one call"
    assert model == "emoji" or calls < 0.9 * jobs, "and some calls had more than one"


def test_a_larger_line_of_equal_requests_is_packed(many: Triton) -> None:
    with many.client("packed") as client:
        before = many.wait_until_idle("packed")
        all_at_once(client, [{"prompt": PROMPTS[i % 5], "seed": i, "num_inference_steps": 20} for i in range(16)])
        after = many.wait_until_idle("packed")
    calls = after["taylorseer_engine_batch_size_count"] - before["taylorseer_engine_batch_size_count"]
    jobs = after["taylorseer_engine_batch_size_sum"] - before["taylorseer_engine_batch_size_sum"]
    assert jobs / calls > 1.5


def test_memory_comes_back_whatever_becomes_of_the_requests(many: Triton) -> None:
    """300 requests, of which a third is cancelled at some step and a tenth fails; a short form of the soak. At every
    engine call all caches together are within the budget, or the request fails."""
    worker = many.process_of("sampled_stream")
    outcomes: list[str] = []

    def run(number: int) -> None:
        chance = random.Random(number)
        (request,) = some_requests(1, seed=1000 + number)
        with many.client("sampled") as client:
            try:
                if chance.random() < 0.1:
                    client.generate(**{**request, "cache_order": 99})
                updates = client.stream(**request)
                if chance.random() < 0.33:
                    for _ in range(chance.randint(0, 3)):
                        next(updates, None)
                    updates.close()
                    outcomes.append("cancelled")
                    return
                assert isinstance([*updates][-1], Generation)
                outcomes.append("ok")
            except InvalidArgument:
                outcomes.append("invalid")

    def wave(first: int, count: int) -> tuple[int, int]:
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(run, range(first, first + count)))
        metrics = many.wait_until_idle("sampled")
        assert metrics["taylorseer_cache_bytes"] == 0
        return worker.memory_info().rss, worker.num_threads()

    wave(0, 100)  # allocators and the engine's arenas have seen every shape
    before, threads_before = wave(100, 100)
    after, threads_after = wave(200, 100)
    assert {"ok", "cancelled", "invalid"} <= set(outcomes)
    assert len(outcomes) == 300
    assert after < 1.02 * before, f"resident memory went from {before} to {after}"
    assert threads_after == threads_before


def test_a_request_that_never_fits_is_told_the_numbers(many: Triton) -> None:
    with (
        many.client("small") as client,
        pytest.raises(InvalidArgument, match=r"MiB, must be at most 2\.0 MiB, the mem"),
    ):
        client.generate("red apple, 3d", height=128, width=128, cache_order=8, negative_prompt="blurry")


def test_the_line_is_bounded_by_bytes_and_places_and_tells_when_to_come_again(many: Triton) -> None:
    many.wait_until_idle("small")
    busy = {"prompt": "red apple, 3d", "num_inference_steps": 60, "cache_interval": 1, "cache_order": 0}
    done: list[Generation] = []
    refused: list[tuple[float, str]] = []

    def ask() -> None:
        began = time.monotonic()
        with many.client("small") as client:
            try:
                done.append([*client.stream(**busy)][-1])
            except Unavailable as error:
                refused.append((time.monotonic() - began, str(error)))

    def refused_in_s() -> float:
        began = time.monotonic()
        with many.client("small") as client, pytest.raises(Unavailable):
            list(client.stream(**busy))
        return time.monotonic() - began

    threads = [threading.Thread(target=ask) for _ in range(14)]
    most, one_by_one = 0.0, []
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        metrics = many.metrics("small")
        most = max(most, metrics["taylorseer_requests_in_flight"])
        assert metrics["taylorseer_cache_bytes"] <= 2 * 2**20
        if metrics["taylorseer_requests_waiting"] == 6 and len(refused) == 5 and len(one_by_one) < 20 and not done:
            one_by_one.append(refused_in_s())
        time.sleep(0.05)
    assert most == 3
    assert len(one_by_one) > 5
    assert median(one_by_one) < 0.05, "though the model is as busy as it can be"
    assert len(done) == 9, "three slots and a line of six"
    assert len(refused) == 5
    assert all("3 requests are in flight and 6 wait" in message for _, message in refused)
    assert all("try again in" in message for _, message in refused)
    assert max(seconds for seconds, _ in refused) < 2, "at once; opening a connection on a busy machine is in it"
    many.wait_until_idle("small")


def test_a_deadline_that_passes_in_line_is_told_while_the_request_waits(many: Triton) -> None:
    busy = {"prompt": "red apple, 3d", "num_inference_steps": 400, "cache_interval": 1}
    with many.client("small") as client:
        streams = [client.stream(**busy) for _ in range(3)]
        workers = [threading.Thread(target=lambda stream=stream: next(stream)) for stream in streams]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        waiting = client.stream("red apple, 3d", deadline_ms=300, num_inference_steps=400, height=72)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="DEADLINE: deadline_ms of 300 passed before it began"):
            next(waiting)
        assert 0.25 < time.monotonic() - began < 3.0, "not when its turn comes, which is many seconds away"
        for stream in streams:
            stream.close()
    metrics = many.wait_until_idle("small")
    assert metrics["taylorseer_requests_waiting"] == 0


def test_a_deadline_stretches_the_interval_and_is_met_or_refused_at_once(many: Triton) -> None:
    fields = {"prompt": "red apple, 3d", "height": 88, "width": 88, "num_inference_steps": 50, "cache_interval": 2}
    with many.client("small") as client:
        usual = client.generate(**fields)
        usual = client.generate(**fields)
        work_ms = 1000 * usual.report["total_s"]
        stretched = client.generate(**fields, deadline_ms=int(0.75 * work_ms))
        assert 2 < stretched.report["cache_interval"] <= 12
        assert stretched.report["stretched_by"] == "deadline"
        assert usual.report["stretched_by"] is None
        assert len(stretched.report["full_steps"]) < len(usual.report["full_steps"])
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"deadline_ms is 1, must be at least \d+ for now"):
            client.generate(**fields, deadline_ms=1)
        assert time.monotonic() - began < 1, "at once"
        assert client.generate(**fields, deadline_ms=60_000).report["cache_interval"] == 2


def test_a_deadline_in_the_past_ends_a_request_of_a_size_that_nothing_is_known_of(many: Triton) -> None:
    """A millisecond from arrival is over before anything has begun."""
    began = time.monotonic()
    with many.client("small") as client, pytest.raises(DeadlineExceeded, match="DEADLINE: deadline_ms of 1 passed"):
        client.generate("red apple, 3d", height=40, width=32, num_inference_steps=1000, deadline_ms=1)
    assert time.monotonic() - began < 1
    many.wait_until_idle("small")


def test_a_long_line_stretches_intervals_and_says_so(many: Triton) -> None:
    before = many.wait_until_idle("hurried")
    with many.client("hurried") as client:
        alone = client.generate("red apple, 3d", num_inference_steps=30)
        streams = [client.stream("red apple, 3d", seed=i, num_inference_steps=30) for i in range(9)]
        with ThreadPoolExecutor(9) as pool:
            reports = [each[-1].report for each in pool.map(list, streams) if isinstance(each[-1], Generation)]
    after = many.wait_until_idle("hurried")
    assert (alone.report["cache_interval"], alone.report["stretched_by"]) == (3, None)
    stretched = [each for each in reports if each["stretched_by"] == "load"]
    assert {each["cache_interval"] for each in reports if each not in stretched} <= {3}
    assert all(3 < each["cache_interval"] <= 8 for each in stretched)
    assert max(each["cache_interval"] for each in stretched) > 5
    assert all(len(each["full_steps"]) < len(alone.report["full_steps"]) for each in stretched)
    counted = (metrics["taylorseer_stretched_total load"] for metrics in (before, after))
    assert -next(counted) + next(counted) == len(stretched)


def test_a_model_is_loaded_again_while_it_is_busy(many: Triton) -> None:
    """Requests in flight are finished by the old instance, later ones by the new; metrics are the new one's."""
    stop, failed, done = threading.Event(), [], []

    def keep_asking(number: int) -> None:
        with many.client() as client:
            while not stop.is_set():
                try:
                    client.generate(PROMPTS[number], seed=number, num_inference_steps=10)
                    done.append(time.monotonic())
                except (Unavailable, Cancelled) as error:
                    failed.append(error)
                except GenerationError as error:
                    failed.append(error)
                    return

    threads = [threading.Thread(target=keep_asking, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(done) > 5)
    config = many.repository / "emoji_stream/config.pbtxt"
    config.write_text(config.read_text() + "\n# changed, so that Triton loads it again\n")
    many.grpc.load_model("emoji_stream", headers=many.key)
    loaded = time.monotonic()
    wait_for(lambda: sum(each > loaded for each in done) > 20)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failed
    served = len([each for each in done if each > loaded])

    def counted() -> float:
        return many.metrics().get("taylorseer_requests_total ok", 0)

    # The new instance tells what it has counted once the metrics of the old one are gone.
    wait_for(lambda: served - 3 <= counted() <= served + 3)
    before = many.wait_until_idle()["taylorseer_requests_total ok"]
    with many.client() as client:
        client.generate("red apple, 3d", num_inference_steps=4)
    wait_for(lambda: counted() == before + 1, timeout_s=5)


def test_a_model_is_unloaded_while_it_is_busy_and_loaded_again(many: Triton) -> None:
    """Requests in flight are finished, later ones are told."""
    key = many.key
    many.wait_until_idle("packed")
    with many.client("packed") as client:
        streams = [client.stream("red apple, 3d", seed=i, num_inference_steps=60, cache_interval=1) for i in range(3)]
        for stream in streams:
            next(stream)
        many.grpc.unload_model("packed_stream", headers=key)
        with pytest.raises(Unavailable, match="'packed_stream' is not ready"):
            client.generate("red apple, 3d", num_inference_steps=4)
        assert all(isinstance([*stream][-1], Generation) for stream in streams)
        many.grpc.load_model("packed_stream", headers=key)
        assert client.generate("red apple, 3d", num_inference_steps=4).image.shape == (1, 64, 64, 3)


def test_a_short_soak_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make soak` in 18 seconds, with a short line so that it is full by then. How its memory drifts takes longer to
    tell: test_memory_comes_back_whatever_becomes_of_the_requests."""
    monkeypatch.setenv("TAYLORSEER_EMOJI_MAX_WAITING", "12")
    path = tmp_path / "soak.json"
    soak.main(["--minutes", "0.3", "--output", str(path)])
    result = json.loads(path.read_text())
    assert {name: result["left_behind"][name] for name in ("cache_bytes", "requests_in_flight", "threads")} == {
        "cache_bytes": 0,
        "requests_in_flight": 0,
        "threads": 0,
    }
    assert result["mixed"]["outcomes"].keys() <= {"ok", "cancelled", "invalid"}
    overload = result["overload"]
    assert overload["failed"] == []
    assert overload["served"] > 12
    assert overload["refused"] > 0
    assert overload["refused_within_s"]["p50"] < 0.05
    # Nobody waits more than his share: the line is 12 long, and 8 are worked on.
    assert overload["latency_s"]["p99"] < 2 * (12 + 8) / result["mixed"]["finished_per_s"]
