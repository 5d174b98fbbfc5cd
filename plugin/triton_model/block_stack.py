"""A block stack as a model of its own, which engine triton calls; what it does with calls is in `stack_runner`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from plugin.triton_model.backend import Request


class BlockStackModel:
    """A block stack for engine triton: runs what Triton's dynamic batcher gathers in as few engine calls as it may.

    Its config.pbtxt has `max_batch_size`, `dynamic_batching`, the tensors of the family's block stack, and those
    parameters of a stream model that say how to load a pipeline and which engine to run.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the transformer and builds its engine; an exception here is Triton's message for the failed load."""
        # Late as in stream.py: Triton imports this file in a process of its own first.
        from plugin.triton_model.settings import configure
        from plugin.triton_model.stack_runner import StackRunner

        name = args["model_name"]
        if not json.loads(args["model_config"])["max_batch_size"]:
            raise ValueError(f"max_batch_size of {name} is 0, must be at least 1: every input has a batch axis")
        self._runner = StackRunner(name, configure(args))

    def execute(self, requests: Sequence[Request]) -> list[Any]:
        """One response for each request, in order."""
        return self._runner.run(requests)
