"""Guidance branches of one step at once: a call of the transformer that returns before it has computed.

Pipelines call the transformer for each branch in turn and combine the results after the last call. Where engine calls
can run at once, the first calls of a full step are made in threads of their own, and what they return is a tensor that
is computed when something reads it. A pipeline that reads one branch before it calls the next gets what it would get
anyway, just not sooner.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map

from plugin.families.base import autocast_state


@dataclass(frozen=True)
class Look:
    """How the output of a call looks, known from an earlier one."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, output: Any) -> Look | None:
        """Of what a forward has returned; None where that is not one tensor in a tuple."""
        if type(output) is not tuple or len(output) != 1 or type(output[0]) is not torch.Tensor:
            return None
        return cls(output[0].shape, output[0].dtype, output[0].device)


class Later:
    """What a function returns, computed in a thread of its own under the caller's modes of torch.

    Args:
        compute: the function.
    """

    def __init__(self, compute: Callable[[], Any]) -> None:
        self._compute = compute
        self._result: Any = None
        self._error: BaseException | None = None
        # Modes belong to threads: without them a copy would track gradients, or compute in another dtype.
        self._modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self._autocast = {kind: autocast_state(kind) for kind in ("cpu", "cuda")}
        self._thread = threading.Thread(target=self._run, name="guidance-branch", daemon=True)
        self._thread.start()

    def result(self) -> Any:
        """Waits for it; raises what the function has raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._result

    def wait(self) -> None:
        """Waits for its end, whatever that is."""
        self._thread.join()

    def _run(self) -> None:
        grad, inference = self._modes
        try:
            with ExitStack() as modes:
                modes.enter_context(torch.inference_mode(inference))
                modes.enter_context(torch.set_grad_enabled(grad and not inference))
                for kind, (enabled, dtype) in self._autocast.items():
                    if enabled:
                        modes.enter_context(torch.autocast(kind, dtype=dtype))
                self._result = self._compute()
        except BaseException as error:
            self._error = error


class LateTensor(torch.Tensor):
    """A tensor that is computed elsewhere; the first operation on it waits for that."""

    _later: Later

    @staticmethod
    def __new__(cls, look: Look, later: Later) -> LateTensor:
        wrapper: Any = torch.Tensor._make_wrapper_subclass
        tensor: LateTensor = wrapper(cls, look.shape, dtype=look.dtype, device=look.device)
        tensor._later = later
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Runs an operation on what has been computed."""

        def computed(each: Any) -> Any:
            return each._later.result()[0] if isinstance(each, LateTensor) else each

        return func(*tree_map(computed, args), **tree_map(computed, kwargs or {}))
