"""Weights that are on their device only while a call uses them."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from plugin.families.weights import is_quantized
from plugin.memory import give_back
from plugin.paths import default_cache_dir

_ALIGNED_BYTES = 64  # as torch's own tensors on a CPU: kernels choose their order of summing by the alignment


class IdleWeights:
    """The weights of one component: on the device from the first call that begins to the last that ends, and elsewhere
    while there is none. Used by any number of threads, whose calls run side by side.

    Elsewhere is main memory. Where that is the device itself, it is a file without a name in the cache folder: the
    system deletes it with the process, however that ends. A file is mapped and not read, so its pages count as the
    process's memory while a call uses them, and bringing them back costs little as long as the system has them cached.

    diffusers' group offloading and accelerate's hooks move a module whenever a call begins and ends, whatever other
    calls are in the middle of it; and diffusers' files (safetensors) are not aligned as tensors are, which changes the
    last bits of some products on a CPU.

    Args:
        module: the component, anywhere.
        device: where its calls run.
        folder: for the file; None for `plugin.paths.default_cache_dir()`. It must lie on a disk.

    Attributes:
        nbytes: of the weights.

    Raises:
        ValueError: the weights are quantised.
        OSError: there is no room for the file.
    """

    def __init__(self, module: nn.Module, device: torch.device, folder: Path | None = None) -> None:
        if is_quantized(module):
            raise ValueError(
                f"{type(module).__name__} has quantised weights, which cannot be idle: leave its quantization or its "
                "offload out"
            )
        every = dict.fromkeys([*module.parameters(), *module.buffers()])
        self._tensors = [each for each in every if each.numel() and (device.type != "cpu" or _is_dense(each))]
        self.nbytes = sum(each.nbytes for each in self._tensors)
        self._lock = threading.Lock()
        self._users = 0
        self._home: _Home = (
            _InFile(self._tensors, folder or default_cache_dir())
            if device.type == "cpu"
            else _InMainMemory(self._tensors, device)
        )
        self._replace(self._home.idle())
        give_back()

    @property
    def users(self) -> int:
        """Calls that use the weights now."""
        return self._users

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, the weights are on the device."""
        with self._lock:  # those that come meanwhile wait until all weights are there
            if not self._users:
                self._replace(self._home.brought())
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._replace(self._home.idle())

    def _replace(self, contents: Sequence[torch.Tensor]) -> None:
        """Puts contents into the module's tensors, which stay the same objects: copies of the module share them."""
        for tensor, content in zip(self._tensors, contents, strict=True):
            tensor.data = content


class _Home(Protocol):
    """Where weights are while they are idle."""

    def brought(self) -> Sequence[torch.Tensor]:
        """The weights on the device."""

    def idle(self) -> Sequence[torch.Tensor]:
        """What the module has in their place."""


class _InMainMemory:
    """Weights of another device, kept in main memory: nothing is copied when they leave the device."""

    def __init__(self, tensors: Sequence[torch.Tensor], device: torch.device) -> None:
        self._device = device
        self._kept = [each.data.to("cpu") for each in tensors]

    def brought(self) -> Sequence[torch.Tensor]:
        with torch.inference_mode(False):
            return [each.to(self._device) for each in self._kept]

    def idle(self) -> Sequence[torch.Tensor]:
        return self._kept


class _InFile:
    """Weights of a CPU, kept in a file. What reads them without bringing them finds no number, and not another one."""

    def __init__(self, tensors: Sequence[torch.Tensor], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - it lives as long as this object
        self._slices: list[slice] = []  # of the file, in bytes
        self._length = 0
        for each in tensors:
            begin = -(-self._length // _ALIGNED_BYTES) * _ALIGNED_BYTES
            in_order = each.data.as_strided((each.numel(),), (1,))  # as it lies in memory
            content = in_order.view(torch.uint8).numpy().data
            _write(self._file.fileno(), content, begin)
            self._length = begin + len(content)
            self._slices.append(slice(begin, self._length))
        self._layouts = [(each.dtype, each.shape, each.stride()) for each in tensors]
        self._placeholders = [_no_number(dtype).expand(shape) for dtype, shape, _ in self._layouts]

    def brought(self) -> Sequence[torch.Tensor]:
        with torch.inference_mode(False):
            path = f"/proc/self/fd/{self._file.fileno()}"
            mapped = torch.from_file(path, shared=False, size=self._length, dtype=torch.uint8)
            return [
                mapped[where].view(dtype).as_strided(shape, stride)
                for where, (dtype, shape, stride) in zip(self._slices, self._layouts, strict=True)
            ]

    def idle(self) -> Sequence[torch.Tensor]:
        return self._placeholders


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor fills the memory from its first number to its last; few others exist, and they are small."""
    return tensor.is_contiguous() or tensor.untyped_storage().nbytes() == tensor.nbytes


def _write(file: int, content: memoryview, begin: int) -> None:
    """Writes all of it: the system may take less than it is given, and takes at most 2 GB at once."""
    while content:
        written = os.pwrite(file, content, begin)
        content, begin = content[written:], begin + written


def _no_number(dtype: torch.dtype) -> torch.Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.full((), float("nan"), dtype=dtype)
    return torch.zeros((), dtype=dtype)
