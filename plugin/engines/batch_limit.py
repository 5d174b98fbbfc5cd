"""Finds the batch limit of an engine: the batch beyond which throughput hardly rises."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import onnxruntime
import torch

from plugin.engines.base import Engine, UnsupportedShape
from plugin.families.base import BlockInputs, Family
from plugin.paths import default_cache_dir

LARGEST = 8  # rows: larger batches are not tried
TOLERANCE = 0.05  # a larger batch must raise throughput by at least this share
_REPEATS = 3
_LONG_S = 1.0  # a call that takes longer is timed once


def find_batch_limit(seconds_of: Callable[[int], float], largest: int = LARGEST, tolerance: float = TOLERANCE) -> int:
    """The smallest of 1, 2, 4, ... rows whose throughput is within `tolerance` of the best one tried.

    Trying ends with the first doubling that raises throughput by less than `tolerance`: if one row fills the device,
    larger batches only take longer.

    Args:
        seconds_of: the time of one call with that many rows; infinite if it cannot be run.
        largest: the most rows to try, at least 1.
        tolerance: a share, above 0.
    """
    throughput = {1: 1 / seconds_of(1)}
    rows = 1
    while 2 * rows <= largest:
        rows *= 2
        throughput[rows] = rows / seconds_of(rows)
        if throughput[rows] < (1 + tolerance) * throughput[rows // 2]:
            break
    best = max(throughput.values())
    return min(rows for rows, each in throughput.items() if each >= (1 - tolerance) * best)


def calibrated_rows(
    engine: Engine,
    family: Family,
    axes: Mapping[str, int],
    threads: int | None,
    cache_dir: Path | None = None,
    *,
    lanes: int = 1,
) -> int:
    """The batch limit of a block stack at one size, in rows; measured now unless the cache has it.

    Args:
        engine: runs the stack.
        family: the stack's family.
        axes: the length of every dynamic axis but the batch.
        threads: of one engine call on a CPU; None for all cores.
        cache_dir: None for `default_cache_dir()`.
        lanes: concurrent engine calls.
    """
    device: torch.device = family.transformer.device  # type: ignore[assignment]
    description = {
        "engine": engine.name,
        "family": family.name,
        "config": {name: repr(value) for name, value in family.transformer.config.items() if name[0] != "_"},  # type: ignore[union-attr, operator]
        "dtype": str(family.transformer.dtype),
        "axes": dict(axes),
        "device": _device_name(device),
        "threads": threads,
        "lanes": lanes,
        "packages": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "rule": [LARGEST, TOLERANCE],
    }
    key = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:32]
    path = (cache_dir or default_cache_dir()) / "batch-limits" / f"{family.name}-{key}.json"
    with suppress(OSError, ValueError, KeyError):
        return int(json.loads(path.read_text(encoding="utf-8"))["rows"])
    seconds: dict[int, float] = {}

    def seconds_of(rows: int) -> float:
        seconds[rows] = _time(engine, family, {**axes, "batch": rows}, lanes)
        return seconds[rows]

    rows = find_batch_limit(seconds_of)
    with suppress(OSError):  # keeping it only saves time
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"rows": rows, "seconds": seconds, **description}, indent=1), encoding="utf-8")
    return rows


def _time(engine: Engine, family: Family, lengths: Mapping[str, int], lanes: int) -> float:
    """Seconds of one call in each lane, all at once."""
    inputs = family.inputs_of_size(lengths)
    seconds: list[float] = []
    try:
        with ThreadPoolExecutor(lanes) as pool:
            while len(seconds) <= _REPEATS and not (seconds and seconds[-1] > _LONG_S):
                began = time.perf_counter()
                list(pool.map(partial(_run, engine), [inputs] * lanes))
                if inputs["hidden_states"].is_cuda:
                    torch.cuda.synchronize(inputs["hidden_states"].device)
                seconds.append(time.perf_counter() - began)
    except (UnsupportedShape, torch.OutOfMemoryError):  # no engine for this batch, or no memory
        return float("inf")
    return min(seconds[1:] or seconds)  # the first call allocates; the machine may have held up others


def _run(engine: Engine, inputs: BlockInputs) -> None:
    with torch.no_grad():  # a setting of each thread
        engine.run(inputs)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}"
