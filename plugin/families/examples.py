"""Example calls of a transformer: their sizes and those of the blocks' arguments tell which axes are dynamic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn


@dataclass(frozen=True)
class Example:
    """The size of an example call.

    Attributes:
        batch: rows.
        frames, height, width: of the latents.
        text: tokens of text.
    """

    batch: int
    frames: int
    height: int
    width: int
    text: int

    @property
    def latent_size(self) -> tuple[int, int, int]:
        return self.frames, self.height, self.width


class NotExported(ValueError):
    """The block stack of a transformer has no form that an engine could be built from; the message says why."""


class ExampleTensors(ABC):
    """Tensors for an example call of a transformer."""

    transformer: nn.Module
    dtype: torch.dtype
    device: torch.device
    video: ClassVar[bool] = False

    @abstractmethod
    def tokens(self, size: Example) -> int:
        """I: tokens of the picture or video."""

    def random(self, *shape: int) -> torch.Tensor:
        """Random numbers in the transformer's dtype, on its device."""
        return torch.randn(shape, dtype=self.dtype, device=self.device)

    def spatial(self, size: Example, channels: int | None = None) -> torch.Tensor:
        """Random latents, (B, C, [F,] H, W), of `in_channels` unless others are given."""
        frames = [size.frames] if self.video else []
        return self.random(
            size.batch, channels or self.transformer.config.in_channels, *frames, size.height, size.width
        )

    def packed(self, size: Example) -> torch.Tensor:
        """Random latents as tokens, (B, I, C), of `in_channels`."""
        return self.random(size.batch, self.tokens(size), self.transformer.config.in_channels)

    def ids(self, tokens: int, axes: int = 3) -> torch.Tensor:
        """(tokens, axes) float32: positions, all the same."""
        return torch.ones(tokens, axes, device=self.device)

    def ones(self, *shape: int, dtype: torch.dtype = torch.bool) -> torch.Tensor:
        """Ones, by default True, on the transformer's device."""
        return torch.ones(shape, dtype=dtype, device=self.device)

    def timestep(self, size: Example, value: float = 0.5) -> torch.Tensor:
        """(B,) in the transformer's dtype: the same timestep in all rows."""
        return torch.full((size.batch,), value, dtype=self.dtype, device=self.device)


def rule_of(argument: str, axis: int, lengths: Sequence[int], followed: Mapping[str, Sequence[int]]) -> tuple[str, int]:
    """What the length of an axis follows over the example calls, and by how much it is longer.

    Args:
        argument: of the block stack.
        axis: of the argument.
        lengths: of the axis, one for each example call.
        followed: what it may follow, by name, one for each example call.

    Raises:
        NotExported: it follows none of them.
    """
    for name, others in followed.items():
        longer = {length - other for length, other in zip(lengths, others, strict=True)}
        if len(longer) == 1:
            return name, longer.pop()
    raise NotExported(f"axis {axis} of {argument} is {list(lengths)} long in the example calls, follows no size")


def axis_name(name: str, longer: int) -> str:
    """The name of an axis that follows something."""
    return f"{name}{longer:+d}" if longer else name


def every_token(example: torch.Tensor, axes: Mapping[int, str], lengths: Mapping[str, int]) -> torch.Tensor:
    """A mask in which every token counts: True, or 0 where the mask is added.

    Args:
        example: a mask of another size.
        axes: its dynamic axes, axis index -> name.
        lengths: of those axes, by name.
    """
    shape = [lengths[axes[axis]] if axis in axes else length for axis, length in enumerate(example.shape)]
    return torch.full(shape, not example.is_floating_point(), dtype=example.dtype, device=example.device)
