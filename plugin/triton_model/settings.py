"""What a stream model is told: its settings from what Triton says, the memory it may use, its metrics' labels."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from plugin.config import ModelConfig
from plugin.triton_model.instance import count_on_device, device_of, label_of


def configure(args: Mapping[str, str]) -> ModelConfig:
    """The settings of a model that runs torch; torch's threads are set by them.

    Args:
        args: what Triton's Python backend gives `initialize`.

    Raises:
        InvalidConfig: a parameter is unknown, missing or malformed.
    """
    model_config = json.loads(args["model_config"])
    parameters = {name: value["string_value"] for name, value in model_config["parameters"].items()}
    folder = Path(args["model_repository"])
    config = ModelConfig.from_parameters(parameters, folder, os.environ, model=args["model_name"])
    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    return replace(config, source=replace(config.source, device=device_of(args, config.source.device)))


def budget_bytes(config: ModelConfig, args: Mapping[str, str], idle_bytes: int) -> int:
    """Bytes for the requests that run: as configured, or this instance's share of the free memory.

    Args:
        config: the model's settings.
        args: what Triton's Python backend gives `initialize`.
        idle_bytes: of weights that are not on the device now, and will be while requests use them.
    """
    device = config.source.device
    return config.memory_budget_mib * 2**20 or _free_bytes(device, idle_bytes) // count_on_device(args, device)


def own_labels(args: Mapping[str, str]) -> dict[str, str]:
    """The labels of an instance's metrics: its model, what distinguishes it from the first instance, and its version
    beyond version 1. Processes that exist at once cannot share a metric."""
    labels = {"model": args["model_name"].removesuffix("_stream")}
    if instance := label_of(args):
        labels["model_instance"] = instance  # `instance` is Prometheus' own
    if args["model_version"] != "1":
        labels["version"] = args["model_version"]
    return labels


def _free_bytes(device: str, kept: int) -> int:
    """The share of the free memory, but for the bytes that are kept, that requests may take: the rest is for what a
    model needs on the way."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return max(0, free - kept) * 4 // 5
    return max(0, psutil.virtual_memory().available - kept) // 2
