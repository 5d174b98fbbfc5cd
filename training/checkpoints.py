"""Checkpoints in files of at most 16 MiB; an interrupted write never loses the last good one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

MAX_FILE_BYTES = 16 * 2**20
_HEADER_BYTES = 2**17  # kept free in each shard for what safetensors writes before the tensors
_MAX_TENSORS = 500  # of a shard, whose names and shapes then fit the header


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a run by name, on the CPU, and whatever else it has to remember, as JSON holds it."""

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]


def write_checkpoint(folder: Path, step: int, checkpoint: Checkpoint, max_bytes: int = MAX_FILE_BYTES) -> Path:
    """Writes the checkpoint of a step, removes earlier ones, and returns its folder.

    It is written under another name and renamed when it is complete; only then do the earlier ones go.

    Args:
        folder: holds the checkpoints of one run.
        step: optimizer steps so far.
        checkpoint: its tensors may be on any device.
        max_bytes: no file is larger.

    Raises:
        ValueError: a tensor alone is larger than a file may be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob("*.writing"):
        shutil.rmtree(unfinished)
    final = folder / f"step_{step:08d}"
    if final.exists():  # the run has made no step since
        return final
    scratch = final.with_suffix(".writing")
    scratch.mkdir()
    for number, shard in enumerate(_shards(checkpoint.tensors, max_bytes - _HEADER_BYTES)):
        path = scratch / f"{number:05d}.safetensors"
        save_file({name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in shard.items()}, path)
        _to_disk(path)
    (scratch / "values.json").write_text(json.dumps(checkpoint.values), encoding="utf-8")
    _to_disk(scratch / "values.json")
    scratch.rename(final)
    for each in folder.glob("step_*"):
        if each != final:
            shutil.rmtree(each)
    return final


def last_checkpoint(folder: Path) -> Path | None:
    """The folder of the last complete checkpoint of a run, or None."""
    return max((each for each in folder.glob("step_*") if not each.suffix), default=None)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads what `write_checkpoint` wrote to this folder."""
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(path.glob("*.safetensors")):
        tensors |= load_file(shard)
    return Checkpoint(tensors, json.loads((path / "values.json").read_text(encoding="utf-8")))


def run_tensors(
    modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, device: torch.device
) -> dict[str, torch.Tensor]:
    """All that a run goes on from: its modules by name, its optimizer and its random numbers."""
    return {
        **{
            name: each
            for part, module in modules.items()
            for name, each in with_prefix(part, module.state_dict()).items()
        },
        **with_prefix("optimizer", optimizer_tensors(optimizer)),
        **with_prefix("random", random_tensors(device)),
    }


def restore_run(
    tensors: Mapping[str, torch.Tensor],
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> None:
    """Puts back what `run_tensors` gave."""
    for name, module in modules.items():
        module.load_state_dict(of_prefix(name, tensors))
    restore_optimizer(optimizer, of_prefix("optimizer", tensors))
    restore_random(device, of_prefix("random", tensors))


def with_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors with `prefix.` before their names."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def of_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix.`, without it."""
    return {name.removeprefix(f"{prefix}."): each for name, each in tensors.items() if name.startswith(f"{prefix}.")}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The state of each parameter, for example `17.exp_avg`; the learning rate is the schedule's and not kept."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": tensor for index, each in state.items() for name, tensor in each.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts back what `optimizer_tensors` gave."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_tensors(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of the generators that training on this device draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random(device: torch.device, states: Mapping[str, torch.Tensor]) -> None:
    """Puts back what `random_tensors` gave; a run that moves to a GPU keeps that one's own."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _shards(tensors: Mapping[str, torch.Tensor], max_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors in their order, in groups of at most so many bytes."""
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if tensor.nbytes > max_bytes:
            raise ValueError(f"{name} has {tensor.nbytes} bytes, a file of a checkpoint holds {max_bytes}")
        if size + tensor.nbytes > max_bytes or len(shard) == _MAX_TENSORS:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    if shard:
        yield shard


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
