"""The block stack as another model of the repository, called through Triton, whose batcher packs full steps."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn, Protocol

import torch

from plugin.engine_specs import EngineSpec
from plugin.engines.base import EngineError
from plugin.engines.block_stack import with_batch_axis
from plugin.errors import Unavailable
from plugin.families.base import BlockInputs, Family


class EngineUnavailable(EngineError, Unavailable):
    """The model to call is not loaded; the same request may succeed later."""


class ModelCall(Protocol):
    """Calls a model of the same server, from any thread."""

    def __call__(self, model: str, inputs: BlockInputs) -> torch.Tensor:
        """The model's output `features`, in memory that lives as long as the tensor.

        Args:
            model: the model's name.
            inputs: contiguous tensors by name, all on one device.

        Raises:
            EngineUnavailable: the model is not loaded.
            EngineError: it answered with an error, whose message this is.
        """
        ...


class TritonEngine:
    """Runs a block stack that is a model of its own: a TensorRT plan, an ONNX file or a Python model.

    Args:
        family: the stack's family.
        call: calls models.
        model: the name of the model to call.
        batched: whether it has a batch axis (`max_batch_size` above 0), so that Triton joins requests. It then takes
            every input with the batch axis first; otherwise it takes the arguments as they are.
    """

    name = "triton"
    needs_all_arguments = True

    def __init__(self, family: Family, call: ModelCall, model: str, *, batched: bool) -> None:
        self._family = family
        self._call = call
        self._model = model
        self._batched = batched

    def run(self, inputs: BlockInputs, out: torch.Tensor | None = None) -> torch.Tensor:
        """See `Engine.run`; the result is `out` or memory of its own.

        Raises:
            EngineUnavailable: the called model is not loaded.
            EngineError: it answered with an error, or with a tensor that cannot be the feature of these inputs.
        """
        hidden_states = inputs["hidden_states"]
        given = with_batch_axis(self._family, inputs) if self._batched else inputs
        try:
            features = self._call(self._model, {name: tensor.contiguous() for name, tensor in given.items()})
        except EngineError as error:
            raise type(error)(f"model {self._model}, which runs the block stack: {error}") from None
        if (features.shape, features.dtype) != (hidden_states.shape, hidden_states.dtype):
            raise EngineError(
                f"model {self._model}, which runs the block stack: features are {list(features.shape)} of "
                f"{features.dtype}, must be {list(hidden_states.shape)} of {hidden_states.dtype}"
            )
        # A copy: an anchor lives long, and must not hold memory of Triton's pool.
        out = (torch.empty_like(hidden_states) if out is None else out).copy_(features)
        if features.is_cuda:  # copies are queued there: without waiting, the pool could reuse the memory before
            torch.cuda.current_stream(features.device).synchronize()
        return out


def load_engine(family: Family, spec: EngineSpec, cache_dir: Path | None, threads: int | None) -> NoReturn:
    """Refused: there is no server here to call.

    Raises:
        EngineError: always. Inside a Triton model, `plugin.triton_model` makes the engine itself.
    """
    raise EngineError(
        "engine triton calls another model of the server, so it works only inside a Triton model: "
        "set parameters engine and engine_model in a config.pbtxt, or use another engine here"
    )
