"""Loads the pipeline and the engine of a stream model, and decides how its full steps are packed."""

from __future__ import annotations

from functools import partial

import triton_python_backend_utils as pb_utils

from plugin.config import ModelConfig
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline, only_denoiser
from plugin.engines.batch_limit import calibrated_rows
from plugin.engines.packer import PackSettings
from plugin.engines.triton_engine import TritonEngine
from plugin.serving.plan import architecture_of_pipe, axis_sizes, example_request, feature_of
from plugin.triton_model.model_call import call_model


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
    lanes = config.parallelism.cfg if config.parallelism else config.engine_lanes
    settings = partial(PackSettings, max_wait_s=config.max_batch_wait_ms / 1000, lanes=lanes)
    if config.fixed_batch:
        return settings(config.fixed_batch, fixed_rows=config.fixed_batch)
    if config.max_batch:
        return settings(config.max_batch)
    architecture, request = architecture_of_pipe(host.pipe), example_request(config)
    axes = axis_sizes(host.family, config, architecture, request)
    rows = calibrated_rows(host.lane_engine, host.family, axes, config.engine_threads or None, lanes=lanes)
    tokens, _, text_tokens = feature_of(config, architecture, request)
    return settings(rows, host.family.rows(tokens, text_tokens))
