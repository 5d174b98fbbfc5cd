"""`generate`: files, sentences, errors, batches, and Ctrl-C, against a real Triton."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from functools import partial

import imageio.v3 as imageio
import numpy as np
import pytest
from PIL import Image

from plugin.ops.server import Server
from tests.support.commands import COMMAND, run
from triton_taylorseer_client import Client

WIDE = {**os.environ, "COLUMNS": "200"}


def generate(server: Server, *arguments: object) -> tuple[int, str]:
    return run("generate", "--url", server.grpc_url, *arguments)


def test_the_picture_is_written_and_a_sentence_says_what_was_done(server, tmp_path):
    code, output = generate(server, "red [/b] apple", "--seed", 3, "-o", tmp_path / "apple.png")
    assert code == 0
    assert f"{tmp_path}/apple.png: 0.25 s, 2 full and 8 forecast steps, seed 3" in output
    assert "red [/b] apple" in output
    assert "10/10" in output
    pixels = np.asarray(Image.open(tmp_path / "apple.png"))
    assert np.array_equal(pixels, np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))


def test_every_option_is_sent(server, tmp_path, monkeypatch):
    asked: dict[str, object] = {}
    stream = Client.stream
    monkeypatch.setattr(Client, "stream", lambda self, prompt, **fields: asked.update(fields) or stream(self, prompt))
    options = ["--negative-prompt", "pear", "--seed", 4, "--steps", 7, "--guidance-scale", 1.5, "--height", 32]
    options += ["--width", 48, "--order", 2, "--warmup", 3, "--predictor", "newton", "--schedule", "even"]
    options += ["--max-error", 0.5, "--deadline-ms", 9000, "--timeout", 60, "-o", tmp_path / "a.png"]
    for name, content in {"a": b"a picture", "b": b"another", "m": b"a mask"}.items():
        (tmp_path / name).write_bytes(content)
    options += ["--image", tmp_path / "a", "--image", tmp_path / "b", "--mask", tmp_path / "m", "--strength", 0.25]
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
        "input_image": [b"a picture", b"another"],
        "mask_image": [b"a mask"],
        "strength": 0.25,
        "cache_preset": "paper",
        "cache_interval": 6,
        "cache_order": 2,
        "cache_warmup_steps": 3,
        "cache_predictor": "newton",
        "cache_schedule": "even",
        "cache_max_error": 0.5,
        "deadline_ms": 9000,
        "preview": None,
        "timeout_s": 60,
    }
    assert generate(server, "apple", *options, "--no-cache")[0] == 0
    assert asked["cache_interval"] == 1


def test_a_video_is_written_as_mp4_whatever_the_suffix(server, tmp_path, monkeypatch):
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
        (["x", "--batch", "prompts.txt"], "error: --batch cannot be combined with a prompt or --preview"),
        (["--preview", "--batch", "prompts.txt"], "error: --batch cannot be combined with a prompt or --preview"),
        (["--batch", "nowhere.txt"], "error: [Errno 2] No such file or directory: 'nowhere.txt'"),
        (["x", "-o", "a.docx"], "error: output is a.docx, must end in .mp4, .png or another suffix"),
        (["x", "-o", "no/such/folder/a.png"], "error: output is no/such/folder/a.png, must be in a folder that exists"),
        (["x", "--url", "127.0.0.1:1"], "error: no server answers at 127.0.0.1:1: start one with"),
    ],
)
def test_an_error_is_one_sentence(server, arguments, sentence):
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
    # A shell that runs the tests in the background has the signal ignored, and children inherit that.
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


@pytest.mark.triton
def test_a_batch_writes_every_result_and_reports_what_failed(server, tmp_path):
    batch, folder = tmp_path / "prompts.txt", tmp_path / "pictures"
    batch.write_text('red apple\n# not a prompt\n{"prompt": "film", "num_frames": 5}\ninvalid\n')
    code, output = generate(server, "--batch", batch, "-o", folder, "--steps", 7)
    assert code == 1
    assert f"{folder}/0001-red-apple.png: 0.25 s, 2 full and 5 forecast steps, seed 3" in output
    assert f"{folder}/0002-film.mp4: 0.25 s" in output
    assert f"{batch}:4: invalid: cache_order is 9, must be from 0 to 4" in output
    assert "error: 1 of 3 requests failed" in output
    assert sorted(path.name for path in folder.iterdir()) == ["0001-red-apple.png", "0002-film.mp4"]


def test_results_and_errors_are_lines_of_json(server, tmp_path):
    (tmp_path / "prompts.txt").write_text("red apple\ninvalid\n")
    arguments = ["--url", server.grpc_url, "--batch", tmp_path / "prompts.txt", "-o", tmp_path, "--json"]
    done = subprocess.run([COMMAND, "generate", *arguments], capture_output=True, text=True, check=False)
    lines = sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda line: "error" in line)
    assert lines[0]["output"] == f"{tmp_path}/0001-red-apple.png"
    assert lines[0]["report"]["num_steps"] == 10
    assert lines[1] == {"line": 2, "error": "cache_order is 9, must be from 0 to 4"}
    assert done.returncode == 1
