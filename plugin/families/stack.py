"""The block stack of a declared family as one module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from plugin.families.leaves import nested
from plugin.families.standing_in import Arguments, BlockList, Blocks


class RunsBlocks(Protocol):
    """What a block stack must know of its family; see `DeclaredFamily`."""

    def run_blocks(self, blocks: Sequence[nn.Module], spec: Blocks, arguments: Arguments) -> Arguments:
        """Runs one list of blocks as the forward does."""
        ...

    def rows_first(self, argument: str, tensor: torch.Tensor) -> torch.Tensor:
        """An argument of a block as engines take it."""
        ...

    def as_called(self, argument: str, tensor: torch.Tensor) -> torch.Tensor:
        """An argument as blocks take it."""
        ...


class DeclaredStack(nn.Module):
    """The lists of blocks of a transformer as one module, sharing its weights.

    Args:
        transformer: the module whose blocks they are.
        lists: its lists of blocks, in the order of the forward.
        runs: runs one of them.
        complex_numbers: makes what blocks get in place of a complex tensor from its pairs of real numbers.
    """

    def __init__(
        self,
        transformer: nn.Module,
        lists: Sequence[BlockList],
        runs: RunsBlocks,
        complex_numbers: Callable[[torch.Tensor], Any] = torch.view_as_complex,
    ) -> None:
        super().__init__()
        self.lists = nn.ModuleList(getattr(transformer, each.spec.name) for each in lists)
        self._specs, self._runs, self._complex_numbers = lists, runs, complex_numbers

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """The picture's tokens after the last block.

        Args:
            inputs: what the forward gives its blocks, by the names of `nested`.

        Returns:
            (B, I, D), or (B, T+I, D) where the family is joint, in the dtype of the hidden states.
        """
        first, last = self._specs[0].spec, self._specs[-1].spec
        named = {first.stream if name == "hidden_states" else name: each for name, each in inputs.items()}
        given = nested(named, self._complex_numbers, self._runs.as_called)
        flow: Arguments = {name: given.pop(name) for name in (first.stream, *first.returns) if name in given}
        text_rows = 0
        for index, (each, blocks) in enumerate(zip(self._specs, self.lists, strict=True)):
            if each.spec.joined:
                before = self._specs[index - 1].spec
                text_rows = flow[before.text].shape[1]
                flow = {each.spec.stream: torch.cat([flow[before.text], flow[before.stream]], dim=1)}
            renamed = {own: given[name] for name, own in each.spec.renamed if name in given}
            own = {**given, **renamed, **given.get(str(index), {}), **flow}
            arguments = dict.fromkeys(each.required) | {name: own[name] for name in each.parameters if name in own}
            after = self._runs.run_blocks(blocks, each.spec, arguments)
            flow = {name: after[name] for name in each.spec.returns}
        features = self._runs.rows_first(last.stream, flow[last.stream])
        return features[:, text_rows:] if text_rows else features
