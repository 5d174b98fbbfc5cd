"""Loads a block stack and its engine, and answers the calls of other models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton_python_backend_utils as pb_utils
from torch.utils.dlpack import from_dlpack

from plugin.config import ModelConfig
from plugin.denoising.loading import load_pipeline, only_denoiser
from plugin.engines import ENGINES, make_engine
from plugin.engines.base import EngineError
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
    """

    def __init__(self, name: str, config: ModelConfig) -> None:
        self._name = name
        self._device = config.source.device
        pipe = load_pipeline(config.source, denoisers_only=True)
        family = family_of(only_denoiser(pipe, name))
        self._stack = BlockStack(family, make_engine(config.engine, family, threads=config.engine_threads or None))
        if not ENGINES[config.engine].keeps_torch_blocks:
            family.release_blocks()

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
