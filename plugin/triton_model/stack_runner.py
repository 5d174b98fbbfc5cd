"""Loads a block stack and its engine, and answers the calls of other models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton_python_backend_utils as pb_utils
from torch.utils.dlpack import from_dlpack

from plugin.config import ModelConfig
from plugin.denoising.loading import load_pipeline, only_denoiser
from plugin.engines import ENGINES, prepare_engines
from plugin.engines.base import EngineError, drop_blocks
from plugin.engines.block_stack import BlockStack
from plugin.families import family_of
from plugin.families.base import BlockInputs
from plugin.tensors import BLOCK_STACK_OUTPUT
from plugin.triton_model.backend import Request
from plugin.triton_model.responses import named_error


class StackRunner:
    """The block stack of a model.

    Args:
        name: of the model.
        config: its settings.

    Raises:
        ValueError: an engine that only the model that denoises can have.
    """

    def __init__(self, name: str, config: ModelConfig) -> None:
        if ENGINES[config.engine].is_parallel:
            raise ValueError(
                f"parameter 'engine' is {config.engine!r}, must be another one for a block stack of its own: the model "
                "that denoises shares calls itself"
            )
        self._name = name
        self._device = config.source.device
        pipe = load_pipeline(config.source, denoisers_only=True)
        family = family_of(only_denoiser(pipe, name))
        made = prepare_engines(config.engine, {name: family})
        if ENGINES[config.engine].opens_file:
            drop_blocks([family])
        self._stack = BlockStack(family, made(config.engine_threads or None)[name])
        if not ENGINES[config.engine].keeps_torch_blocks:
            drop_blocks([family])

    def run(self, requests: Sequence[Request]) -> list[Any]:
        """One response for each request, in order."""
        with torch.no_grad():
            return [self._respond(result) for result in self._stack.run([self._read(each) for each in requests])]

    def _read(self, request: Request) -> BlockInputs:
        tensors = {tensor.name(): from_dlpack(tensor.to_dlpack()) for tensor in request.inputs()}
        return {name: tensor.to(self._device) for name, tensor in tensors.items()}

    def _respond(self, result: torch.Tensor | EngineError) -> Any:
        if isinstance(result, EngineError):
            pb_utils.Logger.log_error(f"{self._name}: {result}")
            return pb_utils.InferenceResponse(error=named_error("INTERNAL", str(result)))
        return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack(BLOCK_STACK_OUTPUT, result)])
