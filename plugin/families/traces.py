"""What engines need to know of a block stack, read off example calls of the transformer: its arguments, and which of
their axes are dynamic."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from plugin.families.base import BlockInputs, Family, Step
from plugin.families.examples import Example, ExampleTensors, NotExported, axis_name, rule_of


class ExampleCalls(ExampleTensors, Family):
    """A family whose block stack's arguments are the tensors that the blocks get in an example call.

    An axis is dynamic if its length differs between example calls of other sizes; what it follows gives it its name.
    """

    @classmethod
    @abstractmethod
    def patch_of(cls, config: Mapping[str, Any]) -> tuple[int, int, int]:
        """Frames, height and width of a token, in latents."""

    @classmethod
    @abstractmethod
    def text_rows(cls, text_tokens: int) -> int:
        """How many rows of a stream that many tokens of text are."""

    @cached_property
    def _traces(self) -> list[tuple[Example, BlockInputs]]:
        base = self.example_size()
        others = [
            replace(base, batch=base.batch + 1),
            replace(base, height=2 * base.height),
            replace(base, width=2 * base.width),
            replace(base, text=2 * base.text),
            *([replace(base, frames=2 * base.frames)] if self.video else []),
        ]
        return [(size, self.trace(size)) for size in (base, *others)]

    def example_size(self) -> Example:
        """A small size; its numbers of tokens are all different, and longer than 1."""
        frames, height, width = self.patch_of(self.transformer.config)
        return Example(2, 3 * frames if self.video else 1, 4 * height, 6 * width, 16)

    def trace(self, size: Example) -> BlockInputs:
        """The arguments of the block stack in an example call."""
        seen: BlockInputs = {}

        def stop(make: Callable[[], BlockInputs]) -> torch.Tensor:
            seen.update(make())
            raise _Traced

        inputs = {**self._defaults, **self.example_call(size)}
        try:
            with torch.no_grad():
                self.forward(inputs, {}, Step(None, True, stop))
        except _Traced:
            return seen
        raise AssertionError("the forward has called no block")

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        parameters = self.signature.parameters.values()
        return {each.name: each.default for each in parameters if each.default is not each.empty}

    def example_call(self, size: Example) -> dict[str, Any]:
        """Arguments of the transformer's forward, small random ones.

        Raises:
            NotExported: it is not declared.
        """
        raise NotExported(f"{self.name} has no example call: its block stack runs with engine torch alone")

    @cached_property
    def _axes(self) -> dict[str, dict[int, tuple[str, int]]]:
        """For each argument its dynamic axes: axis index -> (what it follows, by how much it is longer)."""
        sizes, traces = zip(*self._traces, strict=True)
        each = [self._lengths(size) for size in sizes]
        followed = {name: [lengths[name] for lengths in each] for name in each[0]}
        return {
            name: {
                axis: rule_of(name, axis, lengths, followed)
                for axis, lengths in enumerate(zip(*(trace[name].shape for trace in traces), strict=True))
                if len(set(lengths)) > 1
            }
            for name in traces[0]
        }

    @cached_property
    def block_axes(self) -> Mapping[str, Mapping[int, str]]:  # type: ignore[override]
        return {name: {axis: axis_name(*rule) for axis, rule in axes.items()} for name, axes in self._axes.items()}

    @property
    def output_axes(self) -> Mapping[int, str]:  # type: ignore[override]
        return self.block_axes["hidden_states"]

    @property
    def random_arguments(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(
            name
            for name, tensor in self._traces[0][1].items()
            if tensor.is_floating_point() and "batch" in self.block_axes[name].values()
        )

    def example_inputs(self) -> BlockInputs:
        return dict(self._traces[0][1])

    def axis_sizes(
        self, tokens: int, text_tokens: int, latent_size: tuple[int, int, int] = (1, 1, 1)
    ) -> dict[str, int]:
        known = self._lengths(Example(1, *latent_size, text_tokens), tokens)
        rules = {rule for axes in self._axes.values() for rule in axes.values() if rule[0] != "batch"}
        return {axis_name(*rule): known[rule[0]] + rule[1] for rule in rules}

    def _lengths(self, size: Example, tokens: int | None = None) -> dict[str, int]:
        """What axes may follow, in the order in which it is tried."""
        config, text = self.transformer.config, self.text_rows(size.text)
        tokens = self.tokens(size) if tokens is None else tokens
        frames, rows, columns = (
            length // side for length, side in zip(size.latent_size, self.patch_of(config), strict=True)
        )
        return {
            "batch": size.batch,
            "image_tokens": tokens,
            "text_tokens": text,
            "all_tokens": tokens + text,
            "frames": frames,
            "rows": rows,
            "columns": columns,
            "frame_tokens": rows * columns,
            "later_tokens": tokens - rows * columns,
        }


class _Traced(Exception):
    """Ends the forward of an example call once its blocks have their arguments."""
