"""What idle components and idle models give back, and what it costs to have them again, on a CPU.

The embedded model, its second text encoder exchanged for one of 200 MiB with random weights, makes pictures with the
encoder in memory and with it idle (`offload`): in a process each for the memory, in one process by turns for the time.
Then the embedded model itself, in a real Triton, is left alone until it is unloaded (`unload_after_s`) and asked again.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

import psutil
import torch
from rich.console import Console
from rich.progress import track
from transformers import T5EncoderModel

from benchmarks.environment import RESULTS, ROOT, describe
from benchmarks.harness import (
    MODEL,
    PROMPT,
    check_least,
    config_of,
    embedded_server,
    parser_of,
    use_threads_of,
    write,
)
from plugin.denoising.generation import Report, generate
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline
from plugin.memory import resident_bytes
from plugin.ops.server import Server
from plugin.serving.plan import example_request
from triton_taylorseer_client import Client

_WAYS = ("in_memory", "idle")
_LAYER_BYTES = 20 * 2**20
_LAYERS = 10
_AFTER_S = 1.0


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the figures, and writes JSON; `--child` is the process of one way."""
    parser = parser_of("offloaded", __doc__)
    parser.add_argument("--turns", type=int, default=15, help="pictures of each kind, and unloads of the model")
    parser.add_argument("--output", type=Path, default=RESULTS / "offloaded.json")
    parser.add_argument("--child", choices=_WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    check_least(parser, arguments, turns=1)
    if arguments.child:
        print(json.dumps(_memory(arguments.child)))
        return
    result = describe() | {
        "model": MODEL,
        "turns": arguments.turns,
        "offload": {way: _memory_of_process(way) for way in _WAYS} | {"latency": latency(arguments.turns)},
        "unload": unloaded(arguments.turns),
    }
    write(arguments.output, result)
    Console().print_json(data={name: result[name] for name in ("offload", "unload")})


def latency(turns: int) -> dict[str, dict[str, float]]:
    """Of a request whose prompt has to be encoded, and of one whose prompt is known: median seconds from its beginning
    to its first step, and to its picture, either way; and the median over the turns of the idle encoder's seconds over
    the other's.

    Args:
        turns: pictures of each kind.
    """
    makers = {way: _maker(way)[0] for way in _WAYS}
    rows: dict[str, list[dict[str, Report]]] = {"new_prompt": [], "known_prompt": []}
    for turn in track(range(turns + 1), "pictures"):
        for kind in rows:  # the prompt is new to each encoder, then known to it
            order = _WAYS if turn % 2 else _WAYS[::-1]
            rows[kind].append({way: makers[way](f"{PROMPT}, number {turn}") for way in order})
    return {kind: _compared(reports[1:]) for kind, reports in rows.items()}


def _compared(rows: list[dict[str, Report]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in ("encode_s", "total_s"):
        seconds = {way: [getattr(row[way], name) for row in rows] for way in _WAYS}
        found |= {f"{way}_{name}": median(seconds[way]) for way in _WAYS}
        found[f"idle_over_in_memory_{name}"] = median(
            idle / memory for memory, idle in zip(*(seconds[way] for way in _WAYS), strict=True)
        )
    return found


def unloaded(turns: int) -> dict[str, Any]:
    """Medians of the embedded model in a real Triton: its process's memory before and after an unload, and the seconds
    of the request that brings it back, beside those of the next ones.

    Args:
        turns: how often it is unloaded.
    """
    rows = []
    with embedded_server({"unload_after_s": str(_AFTER_S)}) as server, Client(server.grpc_url, MODEL) as client:
        process = _process(server)
        for turn in track(range(turns + 1), "unloads"):
            first = _seconds(lambda: client.generate(PROMPT, seed=1))
            later = [_seconds(lambda: client.generate(PROMPT, seed=1)) for _ in range(3)]
            before = process.memory_info().rss
            _wait_until_unloaded(server)
            after = process.memory_info().rss
            if turn:  # the first one finds the model as Triton loaded it
                rows.append({"first_s": first, "later_s": median(later), "before_bytes": before, "after_bytes": after})
    return {name: median(row[name] for row in rows) for name in rows[0]}


def _memory_of_process(way: str) -> dict[str, int]:
    child = [sys.executable, "-m", "benchmarks.offloaded", "--child", way]
    done = subprocess.run(child, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _memory(way: str) -> dict[str, int]:
    """Of this process: what it holds between requests, and the peaks of one whose prompt has to be encoded, and of one
    whose prompt is known."""
    make, encoder_bytes = _maker(way)
    for prompt in ("star, 3d", "sun, flat"):  # first calls allocate what stays
        make(prompt)
    between = resident_bytes()
    peaks = []
    for _ in range(2):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak begins again
        make(PROMPT)
        peaks.append(_peak_bytes())
    return {
        "encoder_bytes": encoder_bytes,
        "resident_bytes": between,
        "new_prompt_peak_bytes": peaks[0],
        "known_prompt_peak_bytes": peaks[1],
    }


def _maker(way: str) -> tuple[Callable[[str], Report], int]:
    """What makes a picture of a prompt, and the bytes of the encoder that is offloaded or not."""
    config = config_of()
    use_threads_of(config)
    if way == "idle":
        config = replace(config, source=replace(config.source, offload=(("text_encoder_2", "idle"),)))
    pipe = load_pipeline(config.source)
    pipe.text_encoder_2 = encoder = _large_encoder(pipe.text_encoder_2)
    host = PipelineHost.from_config(pipe, config)

    def make(prompt: str) -> Report:
        request = example_request(config, prompt=prompt, seed=1)
        return generate(host, request, max_sequence_length=config.max_sequence_length).report

    return make, sum(each.nbytes for each in encoder.parameters())


def _large_encoder(encoder: T5EncoderModel) -> T5EncoderModel:
    """One with wider layers and more of them, in its place."""
    torch.manual_seed(0)
    config = copy.deepcopy(encoder.config)
    matrices = 3 if config.is_gated_act else 2
    config.d_ff = _LAYER_BYTES // (4 * matrices * config.d_model)
    config.num_layers = _LAYERS
    return T5EncoderModel(config).eval()  # of float32, as the embedded model


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _peak_bytes() -> int:
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kib) * 1024


def _process(server: Server) -> psutil.Process:
    """The process of the model that owns the pipeline."""
    assert server.process is not None
    children = psutil.Process(server.process.pid).children(recursive=True)
    return next(each for each in children if any(f"{MODEL}_stream" in part for part in each.cmdline()))


def _wait_until_unloaded(server: Server) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with urlopen(server.metrics_url, timeout=30) as answer:
            if re.search(r"^taylorseer_model_loaded\{[^}]*\} 0$", answer.read().decode(), re.MULTILINE):
                return
        time.sleep(0.05)
    raise TimeoutError("the model is not unloaded within a minute")


if __name__ == "__main__":
    main()
