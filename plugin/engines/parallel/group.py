"""A process's place among the others: torch.distributed, diffusers' context parallelism, and its share of a call."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.models._modeling_parallel import ParallelConfig
from torch import nn
from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed.device_mesh import init_device_mesh

from plugin.families.base import BlockInputs

_LOOPBACK = "127.0.0.1"  # all are on this machine
_TIMEOUT = timedelta(minutes=5)  # of one exchange, and of the meeting; who has ended is found out in another way


@dataclass(frozen=True)
class Place:
    """Where a process is.

    Attributes:
        rank: its number, from 0, the model's own process.
        devices: of all processes.
        sequence: how many processes share the tokens of one call; those of a group have ranks in a row.
    """

    rank: int
    devices: tuple[str, ...]
    sequence: int

    @property
    def device(self) -> torch.device:
        """Its own."""
        return torch.device(self.devices[self.rank])

    @property
    def groups(self) -> int:
        """How many groups of `sequence` processes there are."""
        return len(self.devices) // self.sequence


def open_meeting(processes: int) -> TCPStore:
    """The first process's store, by which all get to know each other; its port is one that was free.

    A file would do as well, but torch writes to its path once more when the garbage collector finds the store, and the
    path of a file without a name is then another file's.
    """
    listening = socket.create_server((_LOOPBACK, 0))
    port = listening.getsockname()[1]
    return _store(port, processes, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())


def find_meeting(port: int, processes: int) -> TCPStore:
    """A further process's way to the store of `open_meeting`, at that port."""
    return _store(port, processes)


def join(place: Place, meeting: Store) -> ParallelConfig | None:
    """Meets the other processes; returns once all have come.

    Args:
        place: of this process.
        meeting: its way to the store of all.

    Returns:
        What the attention of the group's blocks needs; None where no process shares tokens.
    """
    on_cpu = place.device.type == "cpu"
    # With CUDA too there are numbers that the CPU exchanges: diffusers' numbers of tokens.
    backend = "gloo" if on_cpu else "cpu:gloo,cuda:nccl"
    if not on_cpu:
        torch.cuda.set_device(place.device)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # of the loopback; else gloo asks for the host's name
    dist.init_process_group(backend, store=meeting, rank=place.rank, world_size=len(place.devices), timeout=_TIMEOUT)
    if place.sequence == 1:
        return None
    mesh = init_device_mesh(
        place.device.type, (place.groups, 1, place.sequence), mesh_dim_names=("cfg", "ring", "ulysses")
    )
    config = ParallelConfig(ContextParallelConfig(ulysses_degree=place.sequence))
    config.setup(place.rank, len(place.devices), place.device, mesh=mesh["ring", "ulysses"])
    return config


class Share:
    """The block stacks of one process, each for its part of a call's tokens.

    Args:
        stacks: by the component's name; nobody else uses these modules.
        config: from `join`.
    """

    def __init__(self, stacks: Mapping[str, nn.Module], config: ParallelConfig | None) -> None:
        self._stacks = stacks
        self._config = config
        for stack in stacks.values():
            for module in stack.modules():
                processor: Any = getattr(module, "processor", None)
                if hasattr(processor, "_parallel_config"):
                    processor._parallel_config = config

    def run(self, name: str, inputs: BlockInputs, even: bool) -> torch.Tensor:
        """The features of this process's tokens; all processes of the group call this at once.

        Args:
            name: of the stack.
            inputs: this process's part.
            even: whether all have as many tokens: then nobody has to ask.
        """
        if self._config is not None:
            self._config.context_parallel_config.ulysses_anything = not even
        with torch.no_grad():
            return self._stacks[name](**inputs)


def heads_of(stack: nn.Module) -> int | None:
    """The number of heads of the attention that can be shared; None where some attention of the stack cannot."""
    attentions: list[Any] = [module for module in stack.modules() if getattr(module, "processor", None) is not None]
    heads = {module.heads for module in attentions if hasattr(module.processor, "_parallel_config")}
    shareable = all(hasattr(module.processor, "_parallel_config") for module in attentions)
    return heads.pop() if shareable and len(heads) == 1 else None


def can_share(heads: int, processes: int) -> bool:
    """Whether processes can share that many heads. Where they do not divide, the last process has fewer, but one at
    least (`_maybe_pad_qkv_head` of diffusers 0.42.0, attention_dispatch.py)."""
    each = -(-heads // processes)
    return processes * each - heads < each


def _store(port: int, processes: int, **options: Any) -> TCPStore:
    return TCPStore(_LOOPBACK, port, processes, timeout=_TIMEOUT, **options)
