"""A block stack as a model of its own, which engine triton calls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
import triton_python_backend_utils as pb_utils
from torch.utils.dlpack import from_dlpack

from plugin.engines import ENGINES, make_engine
from plugin.engines.base import EngineError
from plugin.engines.block_stack import BlockStack
from plugin.families.base import BlockInputs
from plugin.tensors import BLOCK_STACK_OUTPUT
from plugin.triton_model.backend import Request
from plugin.triton_model.responses import named_error
from plugin.triton_model.settings import configure


class BlockStackModel:
    """A block stack for engine triton: runs what Triton's dynamic batcher gathers in as few engine calls as it may.

    Its config.pbtxt has `max_batch_size`, `dynamic_batching`, the tensors of the family's block stack, and those
    parameters of a stream model that say how to load a pipeline and which engine to run.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the transformer and builds its engine; an exception here is Triton's message for the failed load."""
        # Late as in stream.py: Triton imports this file in a process of its own first.
        from plugin.denoising.loading import load_pipeline, only_denoiser
        from plugin.families import family_of

        self.name: str = args["model_name"]
        if not json.loads(args["model_config"])["max_batch_size"]:
            raise ValueError(f"max_batch_size of {self.name} is 0, must be at least 1: every input has a batch axis")
        config = configure(args)
        pipe = load_pipeline(config.source, denoisers_only=True)
        family = family_of(only_denoiser(pipe, self.name))
        self._device = config.source.device
        self._stack = BlockStack(family, make_engine(config.engine, family, threads=config.engine_threads or None))
        if not ENGINES[config.engine].keeps_torch_blocks:
            family.release_blocks()

    def execute(self, requests: Sequence[Request]) -> list[Any]:
        """One response for each request, in order."""
        with torch.no_grad():
            return [self._respond(result) for result in self._stack.run([self._read(each) for each in requests])]

    def _read(self, request: Request) -> BlockInputs:
        tensors = {tensor.name(): from_dlpack(tensor.to_dlpack()) for tensor in request.inputs()}
        return {name: tensor.to(self._device) for name, tensor in tensors.items()}

    def _respond(self, result: torch.Tensor | EngineError) -> Any:
        if isinstance(result, EngineError):
            pb_utils.Logger.log_error(f"{self.name}: {result}")
            return pb_utils.InferenceResponse(error=named_error("INTERNAL", str(result)))
        return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack(BLOCK_STACK_OUTPUT, result)])
