"""What to forecast: the block stack's output, its residual, the transformer's output, or every module as in the paper.

Only the first is served; the others are here to be compared with. The pipeline is FLUX's, on torch, one request at a
time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from plugin.denoising.transformer import DenoisingRun, ForecastingTransformer
from plugin.families.base import Family, Inputs
from plugin.families.flux import FluxFamily
from taylorseer import CacheSession, StepKind

CHOICES = ("block stack", "its residual", "final output", "every module")


class ChosenFeature(ForecastingTransformer):
    """A stand-in that forecasts what is chosen instead of the block stack's output.

    Args:
        family: of a FLUX transformer.
        run: the request's state.
        choice: a name in `CHOICES`.
    """

    def __init__(self, family: Family, run: DenoisingRun, choice: str) -> None:
        super().__init__(family, _NoEngine(), run)
        self._choice = choice
        self._now: tuple[CacheSession, int, str] | None = None
        if choice == "every module":
            transformer = copy.deepcopy(family.transformer)  # its modules are replaced, those of the others are not
            _forecast_modules(transformer, self._forecast_or_compute)
            self._family = FluxFamily(transformer)
        self._blocks = self._family.block_stack()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs: Inputs = self._arguments(*args, **kwargs)
        call = self._run.enter(self._family, inputs)
        constants = call.branch.constants
        self._now = self._run.session, call.step, call.branch.name
        condition = self._family.condition(inputs, constants)
        blocks = self._family.embed(inputs, condition, constants)
        hidden = blocks["hidden_states"]

        def finish(features: torch.Tensor) -> torch.Tensor:
            return self._family.finish(inputs, features, condition)

        if self._choice == "final output":
            output = self._forecast_or_compute("output", lambda: finish(self._blocks(**blocks)))
        elif self._choice == "its residual":
            output = finish(hidden + self._forecast_or_compute("residual", lambda: self._blocks(**blocks) - hidden))
        elif self._choice == "block stack":
            output = finish(self._forecast_or_compute("stack", lambda: self._blocks(**blocks)))
        else:
            output = finish(self._blocks(**blocks))
        return (output,)

    def _forecast_or_compute(self, name: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        assert self._now is not None
        session, step, branch = self._now
        name = f"{branch} {name}"
        if session.kind(step, name) is StepKind.FORECAST:
            return session.forecast(step, name)
        computed = compute()
        session.write(step, name, computed)
        return computed


class _NoEngine:
    name = "torch"

    def run(self, inputs: Any, out: torch.Tensor | None = None) -> torch.Tensor:
        raise AssertionError("the blocks are called directly")


class _Forecast(nn.Module):
    """A module whose output, or each of its outputs, is forecast at forecast steps."""

    def __init__(self, module: nn.Module, name: str, forecast_or_compute: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.module = module
        self._name = name
        self._forecast_or_compute = forecast_or_compute

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's outputs; it runs at most once, and not at all where all of them are forecast."""
        outputs: list[Any] = []

        def compute(index: int) -> torch.Tensor:
            if not outputs:
                outputs.append(self.module(*args, **kwargs))
            return outputs[0][index] if isinstance(outputs[0], tuple) else outputs[0]

        if "encoder_hidden_states" in kwargs:  # joint attention: image and text
            return tuple(self._forecast_or_compute(f"{self._name}.{i}", lambda i=i: compute(i)) for i in range(2))
        return self._forecast_or_compute(self._name, lambda: compute(0))


def _forecast_modules(transformer: Any, forecast_or_compute: Callable[..., torch.Tensor]) -> None:
    """What TaylorSeer caches of FLUX, before the gates: attention and feed-forward of both streams in the double
    blocks, the common projection in the single ones."""
    for i, block in enumerate(transformer.transformer_blocks):
        for part in ("attn", "ff", "ff_context"):
            setattr(block, part, _Forecast(getattr(block, part), f"double {i} {part}", forecast_or_compute))
    for i, block in enumerate(transformer.single_transformer_blocks):
        block.proj_out = _Forecast(block.proj_out, f"single {i} proj_out", forecast_or_compute)
