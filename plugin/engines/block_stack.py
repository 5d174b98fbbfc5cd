"""A block stack as a model of its own: the form of its tensors, and how it runs the requests that Triton gathered.

Every input of such a model has the batch as its first axis. An input that all rows of a call share (rotary tables) is
repeated for each row, because Triton's batcher joins all inputs alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from plugin.engines.base import Engine, EngineError
from plugin.engines.packing import is_shared, joined, may_share_a_call
from plugin.families.base import BlockInputs, Family


def with_batch_axis(family: Family, inputs: BlockInputs) -> BlockInputs:
    """The arguments of a block stack as a batching model of Triton takes them.

    Args:
        family: the stack's family.
        inputs: the arguments, B rows.

    Returns:
        Each argument with B as its first axis. Shared ones are repeated, (B, *shape). Those of one number for each row
        are (B, 1), because Triton cannot declare a tensor with no axis but the batch.
    """
    rows = len(inputs["hidden_states"])

    def lead(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if is_shared(family, name):
            return tensor.expand(rows, *tensor.shape)
        return tensor[:, None] if tensor.ndim == 1 else tensor

    return {name: lead(name, tensor) for name, tensor in inputs.items()}


class BlockStack:
    """Runs a block stack for the requests of one call, packing those that may share an engine call.

    Args:
        family: the stack's family, with its blocks in place.
        engine: runs the stack.
    """

    def __init__(self, family: Family, engine: Engine) -> None:
        self._family = family
        self._engine = engine
        self._examples = {
            name: (tensor.ndim + is_shared(family, name), tensor.dtype)
            for name, tensor in family.example_inputs().items()
        }

    def run(self, requests: Sequence[BlockInputs]) -> list[torch.Tensor | EngineError]:
        """The features of each request, or the error that it ended with.

        Requests with the same shapes and equal shared inputs go through the engine in one call. Tables of another
        height x width differ even at the same number of tokens.

        Args:
            requests: the arguments of each, in the form of `with_batch_axis`, except that numbers are (B,), as Triton's
                `reshape` makes them.

        Returns:
            For each request, in order: its features (B, *feature), in memory that nothing else writes, or the error of
            the engine call that it was part of. An error of one call does not affect the others.
        """
        results: dict[int, torch.Tensor | EngineError] = {}
        groups: list[list[tuple[int, BlockInputs]]] = []
        for index, inputs in enumerate(requests):
            try:
                request = self._without_batch_axis(inputs)
            except EngineError as error:
                results[index] = error
                continue
            fitting = (group for group in groups if may_share_a_call(self._family, group[0][1], request))
            group = next(fitting, None)
            if group is None:
                groups.append(group := [])
            group.append((index, request))
        for group in groups:
            indices, members = zip(*group, strict=True)
            results.update(zip(indices, self._run_together(members), strict=True))
        return [results[index] for index in range(len(requests))]

    def _without_batch_axis(self, inputs: BlockInputs) -> BlockInputs:
        """The arguments in the form that the stack takes."""
        arguments = {}
        for name, tensor in inputs.items():
            if name not in self._examples:
                raise EngineError(f"input {name!r} is unknown, must be one of: {', '.join(self._examples)}")
            if (tensor.ndim, tensor.dtype) != self._examples[name]:
                axes, dtype = self._examples[name]
                raise EngineError(
                    f"input {name} has {tensor.ndim} axes of {tensor.dtype}, must have {axes} of {dtype}, the batch's "
                    "included"
                )
            if not is_shared(self._family, name):
                arguments[name] = tensor
            elif len(tensor) > 1 and not torch.equal(tensor[1:], tensor[:1].expand_as(tensor[1:])):
                raise EngineError(f"input {name} differs between the rows of a request, must be the same in all")
            else:
                arguments[name] = tensor[0]
        return arguments

    def _run_together(self, members: Sequence[BlockInputs]) -> Sequence[torch.Tensor | EngineError]:
        try:
            inputs = joined(self._family, members)
            features = torch.empty_like(inputs["hidden_states"])
            result = self._engine.run(inputs, features)
            if result is not features:  # it is the engine's own memory, which the next call may reuse
                features.copy_(result)
            return features.split([len(member["hidden_states"]) for member in members])
        except Exception as error:  # whatever an engine raises ends these requests, and no others
            reason = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
            return [EngineError(reason)] * len(members)
