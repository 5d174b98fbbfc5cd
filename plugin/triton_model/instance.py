"""Where each process of a model works: Triton's instance_group, read by one of its instances.

Triton gives the instances of one group on several GPUs the same name: only their GPU differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def device_of(args: Mapping[str, str], device: str) -> str:
    """The torch device of an instance.

    Args:
        args: what Triton's Python backend gives `initialize`.
        device: the model's parameter. On a GPU, the index is that of the GPU that Triton gives an instance of KIND_GPU.
    """
    return _device(device, args["model_instance_device_id"] if _is_on_gpu(args) else None)


def count_on_device(args: Mapping[str, str], device: str) -> int:
    """How many instances of the model, this one included, share the memory of its device.

    Args:
        args: as of `device_of`.
        device: the model's parameter.
    """
    devices = []
    for group in _groups(args):
        gpus = group.get("gpus") if group["kind"] == "KIND_GPU" else None
        devices += [_device(device, gpu) for gpu in gpus or [None]] * group["count"]
    return max(1, devices.count(device_of(args, device)))


def label_of(args: Mapping[str, str]) -> str | None:
    """What distinguishes an instance from the first one, which has no label: Triton's name of it, and its GPU."""
    name = args["model_instance_name"].removeprefix(f"{args['model_name']}_")
    first_gpu = next((str(gpu) for group in _groups(args) for gpu in group.get("gpus", [])), None)
    if _is_on_gpu(args) and (gpu := args["model_instance_device_id"]) != first_gpu:
        return f"{name}_gpu{gpu}"
    return None if name in ("0_0", "0") else name  # the second where config.pbtxt has no instance_group


def _device(device: str, gpu: str | int | None) -> str:
    return device if gpu is None or not device.startswith("cuda") else f"cuda:{gpu}"


def _is_on_gpu(args: Mapping[str, str]) -> bool:
    return args["model_instance_kind"].removeprefix("KIND_") == "GPU"


def _groups(args: Mapping[str, str]) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = json.loads(args["model_config"])["instance_group"]
    return groups
