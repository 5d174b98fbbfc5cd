"""Families whose forward is written out here: condition, embed and finish around the block stack."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch

from plugin.families.base import BlockInputs, Constants, Family, Inputs, Step
from plugin.families.refusals import check_call
from plugin.families.sameness import is_same, state_of


class SplitFamily(Family):
    """A family whose forward is written as `finish(inputs, block_stack(**embed(inputs, c)), c)`, `c =
    condition(inputs)`.

    `condition` computes what both ends of the stack need, at every step. `embed` computes what only the blocks need;
    forecast steps skip it.
    """

    def forward(self, inputs: Inputs, constants: Constants, step: Step) -> Any:
        from diffusers.models.modeling_outputs import Transformer2DModelOutput  # takes seconds, and plans import this

        condition = self.condition(inputs, constants, step.timestep)
        features = step.features(lambda: self._checked_embed(inputs, condition, constants))
        output = self.finish(inputs, features, condition)
        return Transformer2DModelOutput(sample=output) if inputs["return_dict"] else (output,)

    def _checked_embed(self, inputs: Inputs, condition: torch.Tensor, constants: Constants) -> BlockInputs:
        check_call(inputs)
        return self.embed(inputs, condition, constants)

    @abstractmethod
    def condition(self, inputs: Inputs, constants: Constants, scheduled: float | None = None) -> torch.Tensor:
        """The step's conditioning, which `embed` and `finish` need.

        Args:
            inputs: the arguments of the forward.
            constants: as `forward` has them.
            scheduled: the timestep as the scheduler has it, if it is known; see `embedded_once`.
        """

    @abstractmethod
    def embed(self, inputs: Inputs, condition: torch.Tensor, constants: Constants) -> BlockInputs:
        """The arguments of the block stack. Their memory may be that of earlier steps.

        Raises:
            ValueError: the call uses something that the family does not serve; the message names it.
        """

    @abstractmethod
    def finish(self, inputs: Inputs, features: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The forward's output, from the stack's output. Of the inputs, it reads only the shape of `hidden_states`."""


def once(constants: Constants, name: str, sources: Sequence[object], compute: Callable[[], Any]) -> Any:
    """What `compute` returns, kept in `constants` for as long as its sources stay the same.

    A tensor is the same while it is the same memory and nothing has been written into it since: callbacks may replace
    the embeddings of a prompt, or edit them. Of what inference mode makes nobody knows that; then nothing is kept.

    Args:
        constants: of the branch.
        name: of the value.
        sources: all that it is computed from but the weights: tensors, shapes, dtypes, None.
        compute: computes it.
    """
    kept = constants.get(name)
    if kept is not None and is_same(kept[0], sources):
        return kept[1]
    value = compute()
    constants[name] = state_of(sources), value
    return value
