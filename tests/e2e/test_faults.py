"""Faults on purpose, through a real Triton: broken and stuck engines, poisoned numbers, vanished clients, a cache that
cannot be written, SIGTERM. After each the server serves the next request."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from plugin.config import ModelConfig
from plugin.denoising.loading import load_pipeline
from plugin.engines.export import optimized_onnx
from plugin.families import family_of
from plugin.ops.control import ENVIRONMENT, grpc_headers
from plugin.ops.installation import find_installation
from plugin.ops.server import EXIT_TIMEOUT_S, Server, ServerConfig, free_ports
from tests.support.commands import IMPATIENT_COMMAND, port_options
from tests.support.pings import ping
from tests.support.repository import SHIPPED, copy_model
from tests.support.serving import Triton
from tests.support.waiting import wait_for
from triton_taylorseer_client import Client, Generation, GenerationError, Progress, Unavailable

SLOW_S = 0.5  # of an engine call while the switch `slow` is on

MODEL = '''
"""The emoji model with faults: prompts `bomb` and `poison`, and switches, which are files in a folder beside this."""

import time
from pathlib import Path

from triton_taylorseer import StreamModel
from tests.support.engines import GuardedEngine

SWITCHES = Path(__file__).parent / "switches"


class Faults:
    """Breaks at what `bomb` is turned into; writes down which calls spoilt rows share with others."""

    def __init__(self):
        self._stuck = False

    def __call__(self, inputs):
        largest = inputs["encoder_hidden_states"].abs().amax((1, 2))
        for prompt, spoilt in (("bomb", largest > 1e6), ("poison", largest.isnan())):
            if spoilt.any() and not spoilt.all():
                (SWITCHES / f"{prompt} had company").touch()
        if (largest > 1e6).any():
            raise RuntimeError("the engine broke on purpose")
        if (SWITCHES / "broken").exists():
            raise RuntimeError("every call breaks on purpose")
        if (SWITCHES / "slow").exists():
            time.sleep(0.5)
        while (SWITCHES / "stuck").exists() or self._stuck:
            self._stuck = True
            time.sleep(1)


class TritonPythonModel(StreamModel):
    def load_host(self):
        host = super().load_host()
        host.engines["transformer"] = GuardedEngine(host.engines["transformer"], Faults())
        encode = host.pipe.encode_prompt

        def encode_prompt(prompt, **more):
            dwell("encoding")
            embeds, pooled, ids = encode(prompt, **more)
            return embeds * {"bomb": 1e12, "poison": float("nan")}.get(prompt, 1.0), pooled, ids

        decode = host.pipe.vae.decode

        def decode_latents(*arguments, **more):
            dwell("decoding")
            return decode(*arguments, **more)

        host.pipe.__dict__["encode_prompt"] = encode_prompt
        host.pipe.vae.__dict__["decode"] = decode_latents
        return host


def dwell(phase):
    """Takes half a second, and leaves a note that it does."""
    if (SWITCHES / f"slow {phase}").exists():
        (SWITCHES / phase).touch()
        time.sleep(0.5)
'''


@dataclass(frozen=True)
class Faulty:
    """`triton-taylorseer serve` of one model, `emoji`, that can be made to fail."""

    triton: Triton
    process: subprocess.Popen[bytes]
    switches: Path
    log: Path

    @contextmanager
    def on(self, switch: str) -> Iterator[None]:
        """A fault of the engine, for as long as the block lasts."""
        (self.switches / switch).touch()
        try:
            yield
        finally:
            (self.switches / switch).unlink()

    def had_company(self, prompt: str) -> bool:
        return (self.switches / f"{prompt} had company").exists()

    def outcomes(self) -> Counter[str]:
        """How many requests have ended in which way, once nothing is in flight and all are counted: that trails the
        answers."""
        start = "taylorseer_requests_total "
        counts: list[Counter[str]] = []
        while len(counts) < 2 or counts[-1] != counts[-2]:
            time.sleep(0.3 * bool(counts))
            metrics = self.triton.wait_until_idle().items()
            counts.append(Counter({name.removeprefix(start): int(n) for name, n in metrics if name.startswith(start)}))
        return counts[-1]

    def processes(self) -> list[psutil.Process]:
        """The tritonserver and its stubs."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def worker(self) -> psutil.Process:
        """The process of emoji_stream, the latest if one before it is still there."""
        stubs = [each for each in self.processes() if any("emoji_stream" in part for part in each.cmdline())]
        return max(stubs, key=lambda each: each.create_time())


@contextmanager
def serving(
    folder: Path, *options: str, launcher: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Iterator[Faulty]:
    """Serves the `emoji` in a folder, which gets the faults.

    Args:
        folder: of models.
        options: of tritonserver.
        launcher: what the command is run by.
        environment: added to ours.
    """
    version = folder / "emoji_stream/1"
    (version / "model.py").write_text(MODEL)
    (version / "switches").mkdir()
    http, grpc, metrics = free_ports(3)
    server = Server(ServerConfig(folder, "127.0.0.1", http, grpc, metrics))  # for its addresses and its key
    ports = port_options(http, grpc, metrics)
    command = [
        *launcher,
        *IMPATIENT_COMMAND,
        "serve",
        "--model-repository",
        str(folder),
        "--model",
        "emoji",
        *ports,
        "--",
        *options,
    ]
    log = folder.parent / "log"
    told = {**os.environ, ENVIRONMENT: server.config.control_key, **(environment or {})}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=told)
    try:
        wait_for(lambda: process.poll() is not None or "ready: HTTP" in log.read_text(), timeout_s=120)
        assert process.poll() is None, log.read_text()[-3000:]
        triton = Triton(server)
        yield Faulty(triton, process, version / "switches", log)
        triton.close()
    finally:
        print(log.read_text()[-3000:])
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    """Engine calls always have four rows and wait for company, so that results are the same bits."""
    folder = tmp_path_factory.mktemp("faults") / "models"
    folder.mkdir()
    copy_model(folder, "emoji", engine_lanes="1", fixed_batch="4", max_batch_wait_ms="300")
    with serving(folder) as each:
        yield each


def pictures(client: Client, requests: list[dict[str, Any]]) -> list[Generation | GenerationError]:
    """What becomes of requests that are made at once."""

    def ask(request: dict[str, Any]) -> Generation | GenerationError:
        try:
            return client.generate(**request)
        except GenerationError as error:
            return error

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(ask, requests))


# Engines and numbers


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("bomb", "RuntimeError: the engine broke on purpose"),
        ("poison", "NotFinite: the picture has values that are not finite"),
    ],
)
def test_one_of_four_that_share_calls_fails_and_the_others_get_the_bits_they_get_alone(
    faulty: Faulty, prompt: str, message: str
) -> None:
    """One makes each call that it has part in raise; one fills its rows of each call with NaN."""
    good = [{"prompt": each, "seed": 3, "num_inference_steps": 12} for each in ("red apple, 3d", "pizza, 3d", "cat")]
    with faulty.triton.client() as client:
        alone = [client.generate(**request) for request in good]
        before = faulty.outcomes()
        together = pictures(client, [*good[:2], {**good[0], "prompt": prompt}, good[2]])
    failed = together.pop(2)
    assert type(failed) is GenerationError
    assert str(failed).startswith(message)
    for one, other in zip(alone, together, strict=True):
        assert isinstance(other, Generation), other
        assert np.array_equal(one.image, other.image)
    assert faulty.had_company(prompt), "at least one call was shared"
    assert faulty.outcomes() - before == {"ok": 3, "error": 1}


def test_an_engine_that_breaks_every_call_fails_all_requests_and_none_after_it(faulty: Faulty) -> None:
    with faulty.triton.client() as client:
        usual = client.generate("red apple, 3d", seed=3, num_inference_steps=12)
        before = faulty.outcomes()
        streams = [client.stream("pizza, 3d", num_inference_steps=1000, cache_interval=2) for _ in range(3)]
        for stream in streams:
            assert isinstance(next(stream), Progress)  # their caches hold something now
        with faulty.on("broken"):
            for stream in streams:
                with pytest.raises(GenerationError, match="RuntimeError: every call breaks on purpose"):
                    list(stream)
            failed = pictures(client, [{"prompt": "cat", "num_inference_steps": 4}] * 3)
            with pytest.raises(InferenceServerException, match="every call breaks on purpose") as caught:
                faulty.triton.grpc.infer("emoji", inputs("cat", 4))
        assert [str(each) for each in failed] == ["RuntimeError: every call breaks on purpose"] * 3
        assert caught.value.status() == "StatusCode.INTERNAL"
        assert faulty.outcomes() - before == {"error": 7}, "and the caches are empty"
        again = client.generate("red apple, 3d", seed=3, num_inference_steps=12)
    assert np.array_equal(again.image, usual.image)


def inputs(prompt: str, steps: int) -> list[tritonclient.grpc.InferInput]:
    tensors = []
    for name, dtype, value in (
        ("prompt", "BYTES", np.array([prompt.encode()], dtype=np.object_)),
        ("num_inference_steps", "INT32", np.array([steps], dtype=np.int32)),
        ("cache_interval", "INT32", np.array([1], dtype=np.int32)),
    ):
        tensor = tritonclient.grpc.InferInput(name, [1], dtype)
        tensor.set_data_from_numpy(value)
        tensors.append(tensor)
    return tensors


# Clients that vanish

STREAMING = """
import sys, time
from triton_taylorseer_client import Client
updates = Client(sys.argv[1]).stream("red apple, 3d", num_inference_steps=200, cache_interval=1)
next(updates), next(updates)
print("two updates", flush=True)
list(updates)
"""

CALLING = """
import sys, time
from triton_taylorseer_client import Client
client = Client(sys.argv[1])
print("calling", flush=True)
client.generate(f"an apple of {time.time()}", num_inference_steps=int(sys.argv[2]), cache_interval=1)
"""


@contextmanager
def killed(script: str, triton: Triton, num_inference_steps: int = 200) -> Iterator[None]:
    """A client process of its own that is killed in the middle of its request."""
    command = [sys.executable, "-c", script, triton.grpc_url, str(num_inference_steps)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


@contextmanager
def dropped(path: str, triton: Triton, num_inference_steps: int = 200) -> Iterator[None]:
    """An HTTP connection that is closed in the middle of its request."""
    body = json.dumps({"prompt": "red apple, 3d", "num_inference_steps": num_inference_steps, "cache_interval": 1})
    host, port = triton.http_url.split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v2/models/{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        if path.endswith("generate_stream"):
            received = b""
            while received.count(b"data:") < 2:
                received += connection.recv(65536)
        yield


@pytest.mark.parametrize(
    "vanishing",
    [
        lambda triton: killed(STREAMING, triton),
        lambda triton: killed(CALLING, triton),
        lambda triton: dropped("emoji_stream/generate_stream", triton),
    ],
    ids=["gRPC stream", "gRPC call", "HTTP stream"],
)
def test_a_vanished_client_is_noticed_within_a_full_step(faulty: Faulty, vanishing: Callable[[Triton], Any]) -> None:
    """The step that has begun is finished; beyond it 2.5 s are for a busy machine to notice. 200 steps are 100 s."""
    before = faulty.outcomes()
    with faulty.on("slow"):
        with vanishing(faulty.triton):
            wait_for(lambda: faulty.triton.metrics()["taylorseer_requests_in_flight"] == 1)
        gone = time.monotonic()
        after = faulty.triton.wait_until_idle(timeout_s=SLOW_S + 2.5)
        print(f"noticed after {time.monotonic() - gone:.2f} s")
    assert faulty.outcomes() - before == {"cancelled": 1}
    assert after["taylorseer_cache_bytes"] == 0
    with faulty.triton.client() as client:
        assert client.generate("red apple, 3d", num_inference_steps=4).image.shape == (1, 64, 64, 3)


@pytest.mark.parametrize(("phase", "outcome"), [("encoding", "cancelled"), ("decoding", "ok")])
def test_a_client_that_vanishes_beside_the_steps_is_noticed_too(faulty: Faulty, phase: str, outcome: str) -> None:
    """What has begun is finished, here half a second; after the decoding nothing is left to cancel."""
    before = faulty.outcomes()
    with faulty.on(f"slow {phase}"):
        with killed(CALLING, faulty.triton, num_inference_steps=4):
            wait_for((faulty.switches / phase).exists)
        after = faulty.triton.wait_until_idle(timeout_s=0.5 + 2.5)
    assert faulty.outcomes() - before == {outcome: 1}
    assert after["taylorseer_cache_bytes"] == 0


def test_a_client_that_vanishes_in_line_makes_room_while_the_others_go_on(faulty: Faulty) -> None:
    before = faulty.outcomes()

    def waiting(number: int) -> bool:
        return faulty.triton.metrics()["taylorseer_requests_waiting"] == number

    with faulty.triton.client() as client, faulty.on("slow"):
        streams = [client.stream("red apple, 3d", num_inference_steps=200, cache_interval=1) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            assert all(isinstance(each, Progress) for each in pool.map(next, streams))
        with killed(CALLING, faulty.triton):
            wait_for(lambda: waiting(1))
        wait_for(lambda: waiting(0), timeout_s=2.5)
        assert faulty.triton.metrics()["taylorseer_requests_in_flight"] == 8, "it did not have to wait for its turn"
        for stream in streams:
            stream.close()
        assert faulty.outcomes() - before == {"cancelled": 9}


def test_a_plain_http_call_whose_client_vanished_ends_and_gives_its_memory_back(faulty: Faulty) -> None:
    """Triton (24.10) does not tell of it, so the work is done to its end; `deadline_ms` would bound it."""
    before = faulty.outcomes()
    with dropped("emoji/generate", faulty.triton, num_inference_steps=20):
        wait_for(lambda: faulty.triton.metrics()["taylorseer_requests_in_flight"] == 1)
    assert faulty.outcomes() - before in ({"ok": 1}, {"cancelled": 1})


# SIGTERM


def test_sigterm_lets_the_requests_in_flight_and_in_line_finish(faulty: Faulty) -> None:
    """Of those that stream and those that do not; `serve` hands the signal on to tritonserver. Health checks go on
    until they are refused: one that was answered just then has held the server up for its whole exit time-out. Ends the
    fixture."""
    processes = faulty.processes()
    ends: list[Generation | GenerationError] = []

    def ask(number: int) -> None:
        fields = {"prompt": "red apple, 3d", "seed": number, "num_inference_steps": 30, "cache_interval": 1}
        with faulty.triton.client() as client:
            try:
                ends.append([*client.stream(**fields)][-1] if number % 2 else client.generate(**fields))
            except GenerationError as error:
                ends.append(error)

    def check_health() -> None:
        while ping(faulty.triton.grpc_url, "emoji_stream") is None:
            pass

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    wait_for(
        lambda: sum(faulty.triton.metrics()[f"taylorseer_requests_{name}"] for name in ("in_flight", "waiting")) == 6
    )
    assert not ends
    threads.append(threading.Thread(target=check_health))
    threads[-1].start()
    time.sleep(0.2)
    began = time.monotonic()
    faulty.process.terminate()
    for thread in threads:
        thread.join(EXIT_TIMEOUT_S)
    print(f"{len(ends)} ended after {time.monotonic() - began:.2f} s: {[type(each).__name__ for each in ends]}")
    assert faulty.process.wait(EXIT_TIMEOUT_S) == 0
    print(f"server ended after {time.monotonic() - began:.2f} s")
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert not alive
    assert len(ends) == 6
    assert all(isinstance(each, Generation) for each in ends), ends


# A cache folder that cannot be written


NO_OVERRIDE = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(24, 1)  # PR_CAPBSET_DROP of CAP_DAC_OVERRIDE: root too may write only what modes allow
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(scope="module")
def read_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    """A server whose cache folder has emoji's engine and cannot be written, with a model `cold` that is not loaded."""
    folder = tmp_path_factory.mktemp("read_only") / "models"
    cache = folder.parent / "cache"
    folder.mkdir()
    copy_model(folder, "emoji", engine_lanes="1", stuck_after_s="3")
    copy_model(folder, "cold", dtype="float16")
    _fill_cache(cache)
    places = [cache, *(path for path in cache.rglob("*") if path.is_dir())]
    launcher = [sys.executable, "-c", NO_OVERRIDE]
    for place in places:
        place.chmod(0o555)
    try:
        if subprocess.run([*launcher, "/usr/bin/touch", str(cache / "new")], capture_output=True).returncode == 0:
            pytest.skip("this user may write everywhere and cannot give that up")
        environment = {"TRITON_TAYLORSEER_CACHE": str(cache)}
        with serving(folder, "--exit-timeout-secs=1", launcher=launcher, environment=environment) as each:
            yield each
    finally:
        for place in places:
            place.chmod(0o755)


def _fill_cache(cache: Path) -> None:
    """What a first start leaves: the server's backends and emoji's engine."""
    config = ModelConfig.from_folder(SHIPPED / "emoji_stream")
    model = optimized_onnx(family_of(load_pipeline(config.source, denoisers_only=True).transformer))
    shutil.copytree(model.parent, cache / "onnx" / model.parent.name)
    backends = find_installation().backends
    if backends is not None:
        shutil.copytree(backends, cache / backends.name)


def test_a_warm_cache_serves_though_it_cannot_be_written(read_only: Faulty) -> None:
    with read_only.triton.client() as client:
        report = client.generate("red apple, 3d", num_inference_steps=4).report
    assert report["engine"] == "onnxruntime"


# Engines and processes that are stuck


def test_a_call_that_never_returns_fails_its_model_which_is_loaded_again(read_only: Faulty) -> None:
    """`stuck_after_s` is 3: all requests are answered soon after, and the model serves again within half a minute."""
    worker = read_only.worker()
    began = time.monotonic()
    with read_only.triton.client() as client, read_only.on("stuck"):
        failed = pictures(client, [{"prompt": "cat", "seed": seed} for seed in range(4)])
    print(f"answered after {time.monotonic() - began:.2f} s")
    assert time.monotonic() - began < 3 + 5
    assert [type(each) for each in failed] == [Unavailable] * 4
    assert {str(each) for each in failed} == {"the model failed: a request has been at one operation for more than 3 s"}
    seconds = served_again(read_only)
    print(f"served after {seconds:.2f} s more")
    assert seconds < 30
    psutil.wait_procs([worker], timeout=30)
    assert not worker.is_running()


def test_a_process_that_is_stopped_is_replaced(read_only: Faulty) -> None:
    """Requests there are never answered, as where it is killed; the model serves again within half a minute."""
    worker = read_only.worker()
    worker.suspend()
    seconds = served_again(read_only)
    print(f"served after {seconds:.2f} s")
    assert seconds < 40
    assert read_only.worker().pid != worker.pid


def test_a_cold_cache_that_cannot_be_written_fails_the_load_with_what_helps_and_no_other_model(
    read_only: Faulty,
) -> None:
    """Last but one: 24.10 keeps the old process of a model that is loaded again after another has failed to load."""
    advice = (
        "no engine can be built in .*: make room there and let this user write there, or name another folder with TRI"
    )
    key = read_only.triton.server.config.control_key
    with pytest.raises(InferenceServerException, match=advice):
        read_only.triton.grpc.load_model("cold_stream", headers=grpc_headers(key))
    with read_only.triton.client() as client:
        assert client.generate("red apple, 3d", num_inference_steps=4).image.shape == (1, 64, 64, 3)


def test_sigterm_ends_a_request_that_takes_too_long_and_leaves_no_process(read_only: Faulty) -> None:
    """Not even the one that was stopped. tritonserver grants 1 s here, after which 24.10 still waits for its streams;
    `serve` kills it 3 s later. Ends the fixture."""
    processes = read_only.processes()
    with read_only.triton.client() as client, read_only.on("slow"):
        stream = client.stream("red apple, 3d", num_inference_steps=200, cache_interval=1)
        assert isinstance(next(stream), Progress)
        began = time.monotonic()
        read_only.process.terminate()
        with pytest.raises(GenerationError):
            list(stream)
        assert time.monotonic() - began < 1 + 3 + 5
    read_only.process.wait(10)
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert not alive


def served_again(faulty: Faulty) -> float:
    """Seconds until the model makes a picture."""
    began = time.monotonic()
    with faulty.triton.client() as client:
        while True:
            try:
                client.generate("red apple, 3d", num_inference_steps=2, timeout_s=5)
                return time.monotonic() - began
            except GenerationError:
                assert time.monotonic() - began < 120
                time.sleep(0.2)
