"""Loads a stream model: its settings from what Triton says, its pipeline and engine, and the memory it may use."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import torch
import triton_python_backend_utils as pb_utils

from plugin.config import ModelConfig
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline, only_denoiser
from plugin.engines.batch_limit import calibrated_rows
from plugin.engines.packer import PackSettings
from plugin.engines.triton_engine import TritonEngine
from plugin.serving.plan import architecture_of_pipe, axis_sizes, example_request, feature_of
from plugin.triton_model.instance import count_on_device, device_of, label_of
from plugin.triton_model.model_call import call_model


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


def load_host(config: ModelConfig, name: str) -> PipelineHost:
    """The host of the configured pipeline, with its engine, packing full steps.

    Args:
        config: the model's settings.
        name: of the model, for the server's log.
    """
    log = pb_utils.Logger
    log.log_info(f"{name}: loading {config.source.pipeline}")
    pipe = load_pipeline(config.source)
    log.log_info(f"{name}: preparing engine {config.engine}")
    if (called := config.engine_model) is not None:  # Triton's own batcher packs
        only_denoiser(pipe, f"engine triton with engine_model {called.name}")
        engine = partial(TritonEngine, call=call_model, model=called.name, batched=called.max_batch_size > 0)
        return PipelineHost.from_config(pipe, config, engine)
    host = PipelineHost.from_config(pipe, config)
    settings = pack_settings(config, host)
    log.log_info(f"{name}: up to {settings.max_rows} rows in one engine call, {settings.lanes} calls at once")
    host.pack(settings)
    return host


def pack_settings(config: ModelConfig, host: PipelineHost) -> PackSettings:
    """How full steps are packed: as configured, or up to the batch limit of the engine at the model's own size."""
    settings = partial(PackSettings, max_wait_s=config.max_batch_wait_ms / 1000, lanes=config.engine_lanes)
    if config.fixed_batch:
        return settings(config.fixed_batch, fixed_rows=config.fixed_batch)
    if config.max_batch:
        return settings(config.max_batch)
    architecture, request = architecture_of_pipe(host.pipe), example_request(config)
    axes = axis_sizes(config, architecture, request)
    rows = calibrated_rows(
        host.lane_engine, host.family, axes, config.engine_threads or None, lanes=config.engine_lanes
    )
    tokens, _, _ = feature_of(config, architecture, request)
    return settings(rows, tokens)


def budget_bytes(config: ModelConfig, args: Mapping[str, str]) -> int:
    """Bytes for the requests that run: as configured, or this instance's share of the free memory."""
    device = config.source.device
    return config.memory_budget_mib * 2**20 or _free_bytes(device) // count_on_device(args, device)


def own_labels(args: Mapping[str, str]) -> dict[str, str]:
    """The labels of an instance's metrics: its model, what distinguishes it from the first instance, and its version
    beyond version 1. Processes that exist at once cannot share a metric."""
    labels = {"model": args["model_name"].removesuffix("_stream")}
    if instance := label_of(args):
        labels["instance"] = instance
    if args["model_version"] != "1":
        labels["version"] = args["model_version"]
    return labels


def _free_bytes(device: str) -> int:
    """The share of the free memory that requests may take: the rest is for what a model needs on the way."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return free * 4 // 5
    return psutil.virtual_memory().available // 2
