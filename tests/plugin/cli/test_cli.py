"""The command line: help, one sentence for every error, and its commands against a real Triton."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial

import imageio.v3 as imageio
import numpy as np
import pytest
from PIL import Image

from clients import Client
from plugin.ops.server import Server, ServerConfig, free_ports, is_ready
from tests.support.commands import COMMAND, free_port_options, port_options, run
from tests.support.fake_server import IDLE, fake_tritonserver, processes_with, repository, wait_until_gone
from tests.support.throwaway import make_repository

WIDE = {**os.environ, "COLUMNS": "200"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("cli")
    config = ServerConfig(make_repository(folder / "models"), "127.0.0.1", *free_ports(3), models=("emoji",))
    with Server(config, log=folder / "log") as server:
        yield server


def generate(server: Server, *arguments: object) -> tuple[int, str]:
    return run("generate", "--url", server.grpc_url, *arguments)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("serve", ["--model-repository", "--http-port", "--grpc-port", "--metrics-port", "--model", "--host"]),
        (
            "generate",
            [
                "--url",
                "--model",
                "--seed",
                "--steps",
                "--guidance-scale",
                "--height",
                "--width",
                "--interval",
                "--order",
            ],
        ),
        ("tune", ["--full-steps", "--prompts", "--pictures", "--name", "--model-repository"]),
        ("evaluate", ["--prompts", "--pictures", "--preset", "--score", "--output"]),
        ("generate", ["--warmup", "--no-cache", "-o"]),
        ("build", ["--model-repository"]),
        ("bench", ["--help"]),
        ("demo", ["--output"]),
    ],
)
def test_help_names_the_options(command, options):
    code, output = run(command, "--help")
    assert code == 0
    assert not [option for option in options if option not in output]


def test_without_a_command_help_lists_them():
    _, output = run()
    assert all(command in output for command in ("serve", "generate", "build", "bench"))


def test_generate_writes_the_picture_and_tells_what_was_done(server, tmp_path):
    code, output = generate(server, "red [/b] apple", "--seed", 3, "-o", tmp_path / "apple.png")
    assert code == 0
    assert f"{tmp_path}/apple.png: 0.25 s, 2 full and 8 forecast steps, seed 3" in output
    assert "red [/b] apple" in output
    assert "10/10" in output
    pixels = np.asarray(Image.open(tmp_path / "apple.png"))
    assert np.array_equal(pixels, np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))


def test_generate_hands_every_option_on(server, tmp_path, monkeypatch):
    asked: dict[str, object] = {}
    stream = Client.stream
    monkeypatch.setattr(Client, "stream", lambda self, prompt, **fields: asked.update(fields) or stream(self, prompt))
    options = ["--negative-prompt", "pear", "--seed", 4, "--steps", 7, "--guidance-scale", 1.5, "--height", 32]
    options += ["--width", 48, "--order", 2, "--warmup", 3, "--predictor", "newton", "--schedule", "even"]
    options += ["--max-error", 0.5, "--deadline-ms", 9000, "-o", tmp_path / "a.png"]
    assert generate(server, "apple", *options, "--interval", 6, "--class-label", 3, "--preset", "paper")[0] == 0
    assert asked == {
        "negative_prompt": "pear",
        "class_label": 3,
        "seed": 4,
        "num_inference_steps": 7,
        "guidance_scale": 1.5,
        "height": 32,
        "width": 48,
        "num_frames": None,
        "cache_preset": "paper",
        "cache_interval": 6,
        "cache_order": 2,
        "cache_warmup_steps": 3,
        "cache_predictor": "newton",
        "cache_schedule": "even",
        "cache_max_error": 0.5,
        "deadline_ms": 9000,
        "preview": None,
    }
    assert generate(server, "apple", *options, "--no-cache")[0] == 0
    assert asked["cache_interval"] == 1


def test_generate_writes_a_video_as_mp4_whatever_the_suffix(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert generate(server, "apple", "--num-frames", 5, "-o", tmp_path / "a.png")[0] == 0
    assert generate(server, "apple", "--num-frames", 5)[0] == 0
    for name in ("a.mp4", "out.mp4"):
        assert imageio.imread(tmp_path / name, plugin="pyav").shape == (5, 4, 6, 3)
    assert generate(server, "apple")[0] == 0
    assert (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["invalid"], "error: cache_order is 9, must be from 0 to 4"),
        (["x", "--model", "unicorn[/b]"], "error: Request for unknown model: 'unicorn[/b]_stream' is not found"),
        (["x", "--seed", 2**70], "error: seed is 1180591620717411303424, must be from"),
        (["x", "--interval", 3, "--no-cache"], "error: --interval is 3 beside --no-cache, must be left out or 1"),
        (["x", "-o", "a.docx"], "error: output is a.docx, must end in .mp4, .png or another suffix"),
        (["x", "-o", "no/such/folder/a.png"], "error: output is no/such/folder/a.png, must be in a folder that exists"),
        (["x", "--url", "127.0.0.1:1"], "error: no server answers at 127.0.0.1:1: start one with"),
    ],
)
def test_generate_ends_with_one_sentence_for_an_error(server, arguments, sentence):
    code, output = generate(server, *arguments)
    assert code == 1
    assert sentence in output


def test_ctrl_c_cancels_the_request(server, tmp_path):
    def wait_for(event: str, steps: int) -> None:
        deadline = time.monotonic() + 30
        with Client(server.grpc_url) as client:
            while steps not in [*client.stream("red apple", num_inference_steps=1)][-1].report[event]:
                assert time.monotonic() < deadline, f"the server has not {event} it"
                time.sleep(0.05)

    arguments = [COMMAND, "generate", "apple", "--url", server.grpc_url, "--steps", "3000", "-o", tmp_path / "a.png"]
    # Whoever runs the tests in the background has the signal ignored, and children inherit that.
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=WIDE, preexec_fn=default)
    wait_for("started", 3000)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "error: cancelled" in printed
    assert "Traceback" not in printed
    wait_for("cancelled", 3000)
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_serve_tells_when_ready_and_ends_with_the_signal(tmp_path, number):
    models = repository(tmp_path / "models", a=IDLE, a_stream=IDLE)
    http, grpc, metrics = free_ports(3)
    ports = port_options(http, grpc, metrics)
    arguments = [COMMAND, "serve", "--model-repository", models, *ports, "--model", "a", "--", "--log-info=false"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log, env=WIDE)
    try:
        deadline = time.monotonic() + 30
        while f"ready: HTTP 127.0.0.1:{http}, gRPC" not in (tmp_path / "log").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert is_ready(f"127.0.0.1:{http}")
        assert any("--log-info=false" in each for each in processes_with(str(tmp_path)))
        process.send_signal(number)
        assert process.wait(20) == 0
    finally:
        process.terminate()
        process.wait()
    wait_until_gone(str(tmp_path))


def test_serve_exits_with_the_servers_code(tmp_path, monkeypatch):
    fake_tritonserver(tmp_path, 'echo "given: $@"; exit 7', monkeypatch)
    arguments = [*free_port_options(), "--model-repository", str(tmp_path)]
    command = [COMMAND, "serve", *arguments, "--", "--log-verbose=1", "--strict-readiness=true"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert process.returncode == 7
    assert process.stdout.rstrip().endswith("--log-verbose=1 --strict-readiness=true")


def test_serve_and_build_errors_are_one_sentence(tmp_path):
    code, output = run("serve", "--model-repository", tmp_path / "nowhere[/b]")
    assert code == 1
    assert f"error: model repository {tmp_path}/nowhere[/b] is not a folder" in output
    code, output = run("serve", "--http-port", 70000)
    assert code == 1
    assert "error: http port is 70000, must be from 1 to 65535" in output
    code, output = run("build", "unicorn")
    assert code == 1
    assert "unicorn_stream" in output
    assert "error: " in output


def test_health_is_a_picture_of_one_step(server):
    assert run("health", "--url", server.grpc_url) == (0, "healthy\n")
    code, output = run("health", "--url", server.grpc_url, "--model", "nothing")
    assert code == 1
    assert "error:" in output
    code, output = run("health", "--url", "127.0.0.1:9", "--timeout", "5")
    assert code == 1
    assert "no server answers at 127.0.0.1:9" in output
