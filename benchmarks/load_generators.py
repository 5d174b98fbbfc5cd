"""perf_analyzer and AIPerf: where they are, the commands that load a model, and what they report.

perf_analyzer comes from the wheel of tritonclient 2.51.0, the newest whose binary runs on glibc 2.36. AIPerf gets a
virtual environment of its own, as its pins clash with ours.
"""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from plugin.paths import default_cache_dir

PERF_ANALYZER = "2.51.0"
AIPERF = "0.13.0"
WINDOWS = 3  # of perf_analyzer, the fewest that it calls stable
_WHEEL = f"tritonclient=={PERF_ANALYZER}"
_LIBRARIES = ("libcudart.so.12", "libb64.so.0d")  # what the binary needs and the server's wheel has
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # AIPerf 0.13 takes a tokenizer's folder for a hub id with them


class LoadError(Exception):
    """A load generator is missing, cannot be installed, or has failed; the message says why and what to do."""


@dataclass(frozen=True)
class Target:
    """A model and how perf_analyzer talks to it.

    Attributes:
        model: its name; a decoupled model needs `streaming`.
        protocol: "grpc" or "http".
        url: host:port of that protocol's endpoint.
        streaming: whether requests go through a gRPC stream.
    """

    model: str
    protocol: str
    url: str
    streaming: bool = False


@dataclass(frozen=True)
class Concurrency:
    """A closed loop: this many clients, each asking again when it has its answer."""

    clients: int

    @property
    def arguments(self) -> list[str]:
        """perf_analyzer's options."""
        return ["--concurrency-range", str(self.clients)]


@dataclass(frozen=True)
class Arrivals:
    """Requests that leave whether or not earlier ones have been answered, at the intervals that a file lists."""

    intervals: Path

    @property
    def arguments(self) -> list[str]:
        """perf_analyzer's options."""
        return ["--request-intervals", str(self.intervals)]


def poisson_intervals(per_s: float, seconds: float, seed: int = 0) -> list[int]:
    """Microseconds between requests at random times, `per_s` on average, which add up to about `seconds`.

    perf_analyzer 2.51's own `--request-distribution poisson` begins with the same times in every run, and those of the
    first hundred requests are a quarter too far apart: what arrived would not be what was asked. These are scaled to
    their mean; one seed gives the same pattern at every rate.
    """
    drawn = np.random.default_rng(seed).exponential(size=max(1, round(per_s * seconds)))
    return [max(1, round(1e6 / per_s * each)) for each in drawn / drawn.mean()]


def find(name: str, given: Path | None) -> Path:
    """The executable of a tool: the given one, else that on PATH, else the installed one.

    Raises:
        LoadError: there is none.
    """
    places = [given] if given else [shutil.which(name), _installed(name)]
    for place in places:
        if place and os.access(place, os.X_OK) and Path(place).is_file():
            return Path(place)
    if given:
        raise LoadError(f"{given} is not an executable file")
    raise LoadError(f"{name} is not on PATH: `python -m benchmarks.load --install` installs it, or name its path")


def install(name: str) -> Path:
    """Installs perf_analyzer or aiperf into the cache folder, unless it is there; returns the executable.

    Raises:
        LoadError: pip fails, or the binary does not run here.
    """
    executable = _installed(name)
    if not executable.is_file():
        {"perf_analyzer": _install_perf_analyzer, "aiperf": _install_aiperf}[name](executable.parent.parent)
    done = subprocess.run([executable, "--version"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoadError(f"{executable} does not run here: {(done.stderr or done.stdout).strip()}")
    return executable


def perf_analyzer_command(
    binary: Path, target: Target, load: Concurrency | Arrivals, window_s: float, input_file: Path, output: Path
) -> list[str]:
    """The command line of one measurement of `WINDOWS` time windows, which reports into the empty folder `output`."""
    return [
        str(binary),
        *("-m", target.model, "-u", target.url, "-i", target.protocol),
        *(["--streaming"] if target.streaming else []),
        *("--input-data", str(input_file)),
        *load.arguments,
        # Always three windows: with the usual stability rule a busy machine would be measured up to ten times.
        *("--measurement-interval", str(round(1000 * window_s)), "--max-trials", str(WINDOWS)),
        *("--stability-percentage", "999"),
        *("-f", str(output / "report.csv"), "--profile-export-file", str(output / "requests.json")),
    ]


def aiperf_command(
    binary: Path, http_url: str, model: str, clients: int, seconds: float, input_file: Path, tokenizer: Path, out: Path
) -> list[str]:
    """The command line of one closed loop against a plain model's /generate, which writes into folder `out`."""
    return [
        *(str(binary), "profile", "--model", model, "--url", f"http://{http_url}"),
        *("--endpoint-type", "image_generation", "--custom-endpoint", f"/v2/models/{model}/generate"),
        *("--input-file", str(input_file), "--custom-dataset-type", "single_turn"),
        *("--tokenizer", str(tokenizer)),  # it counts the tokens of prompts; any tokenizer does
        *("--concurrency", str(clients), "--benchmark-duration", f"{seconds:g}"),
        *("--warmup-request-count", str(clients), "--artifact-dir", str(out), "--ui", "none"),
        *("--no-gpu-telemetry", "--no-server-metrics"),
    ]


def run(command: Sequence[str], log: Path, timeout_s: float) -> float:
    """Runs a load generator to its end, writes what it prints to `log`, and returns the processor seconds that it took.

    Raises:
        LoadError: it failed, with the first error that it printed, or did not end in time.
    """
    before = _children_cpu_s()
    environment = {name: value for name, value in os.environ.items() if name not in _OFFLINE}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LoadError(f"{Path(command[0]).name} did not end within {timeout_s:.0f} s (log: {log})") from None
        finally:
            with suppress(ProcessLookupError):  # AIPerf is many processes
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code:
        raise LoadError(_failure(Path(command[0]).name, log.read_text(encoding="utf-8", errors="replace")))
    return _children_cpu_s() - before


def read_perf_analyzer(output: Path) -> dict[str, Any]:
    """What one measurement found: requests, rates per second and latencies in seconds, until the last response.

    Rates and percentiles are perf_analyzer's own. Its other file has the times of requests and first responses, from
    which `offered_per_s` is computed, the rate at which requests left, where the load is `Arrivals`.
    """
    with (output / "report.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    (export,) = json.loads((output / "requests.json").read_text(encoding="utf-8"))["experiments"]
    requests, closed = export["requests"], export["experiment"]["mode"] == "concurrency"
    sent = [each["timestamp"] / 1e9 for each in requests]
    first = [each["response_timestamps"][0] / 1e9 for each in requests]
    return {
        "requests": len(requests),
        "requests_per_s": float(row["Inferences/Second"]),
        **{f"p{each}_s": float(row[f"p{each} latency"]) / 1e6 for each in (50, 95, 99)},
        "first_response_p50_s": float(np.median(np.subtract(first, sent))),
        **({} if closed or len(sent) < 2 else {"offered_per_s": (len(sent) - 1) / (max(sent) - min(sent))}),
    }


def read_aiperf(output: Path) -> dict[str, Any]:
    """What one closed loop found: requests, their rate per second and latencies in seconds.

    Raises:
        LoadError: requests failed.
    """
    report = json.loads((output / "profile_export_aiperf.json").read_text(encoding="utf-8"))
    if report["error_summary"]:
        raise LoadError(f"AIPerf's requests failed: {json.dumps(report['error_summary'])}")
    return {
        "requests": int(report["request_count"]["avg"]),
        "requests_per_s": report["request_throughput"]["avg"],
        **{f"p{each}_s": report["request_latency"][f"p{each}"] / 1e3 for each in (50, 95, 99)},
    }


def _installed(name: str) -> Path:
    version = {"perf_analyzer": PERF_ANALYZER, "aiperf": AIPERF}[name]
    return default_cache_dir() / f"{name}-{version}" / "bin" / name


def _install_perf_analyzer(folder: Path) -> None:
    """The binary of the wheel, the libraries that it needs, and a script that shows them to it."""
    with tempfile.TemporaryDirectory() as scratch:
        # The wheel without a binary would be taken otherwise: pip prefers it on a newer glibc.
        only = ("--no-deps", "--only-binary", ":all:", "--platform", "manylinux1_x86_64")
        _pip(Path(sys.executable), "download", *only, "--dest", scratch, _WHEEL)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (each for each in archive.namelist() if each.endswith("/bin/perf_analyzer"))
            archive.extract(member, scratch)
        (folder / "lib").mkdir(parents=True, exist_ok=True)
        (folder / "bin").mkdir(exist_ok=True)
        shutil.move(Path(scratch) / member, folder / "lib" / "perf_analyzer")
    (folder / "lib" / "perf_analyzer").chmod(0o755)
    for name, source in _wheel_libraries().items():
        shutil.copy(source, folder / "lib" / name)
    script = folder / "bin" / "perf_analyzer"
    script.write_text(
        "#!/bin/sh\n"
        'lib="$(dirname "$(dirname "$(readlink -f "$0")")")/lib"\n'
        'LD_LIBRARY_PATH="$lib:$LD_LIBRARY_PATH" exec "$lib/perf_analyzer" "$@"\n',
        encoding="utf-8",
    )
    script.chmod(0o755)


def _wheel_libraries() -> dict[str, Path]:
    """Those of `_LIBRARIES` that came with the server's wheel, where each has a hash in its name."""
    spec = find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        return {}
    folder = Path(spec.submodule_search_locations[0]).parent / "nvidia_pytriton.libs"
    found = {name: list(folder.glob(name.replace(".so", "-*.so") + "*")) for name in _LIBRARIES}
    return {name: paths[0] for name, paths in found.items() if paths}


def _install_aiperf(folder: Path) -> None:
    venv.create(folder, with_pip=True)
    try:
        _pip(folder / "bin" / "python", "install", f"aiperf=={AIPERF}")
    except LoadError:
        shutil.rmtree(folder)
        raise


def _pip(python: Path, *arguments: str) -> None:
    done = subprocess.run([python, "-m", "pip", "--quiet", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoadError(f"pip {arguments[0]} {arguments[-1]} failed: {done.stderr.strip()}")


def _failure(name: str, log: str) -> str:
    error = re.search(r"had error: (.+)", log) or re.search(r"ERROR\s+(.+)", log)
    lines = [line.strip() for line in log.split("Usage: ")[0].splitlines() if line.strip()]
    return f"{name}: {error[1].strip() if error else ''.join(lines[-1:])}"


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
