"""What stands for tensors inside blocks that are exported, where ONNX has no form for what is done with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class Rotation:
    """A table of complex numbers as pairs of real ones, in place of a complex tensor inside blocks that are exported.

    Blocks turn pairs of features into complex numbers, multiply them by the table and turn them back
    (`torch.view_as_complex`, `*`, `torch.view_as_real`). ONNX has no complex numbers; the exporter leaves out the two
    views, and this class does the multiplication in real numbers. The result differs from torch's by rounding.

    Args:
        pairs: (..., 2), real and imaginary parts.
    """

    def __init__(self, pairs: torch.Tensor) -> None:
        self._pairs = pairs

    def unsqueeze(self, dim: int) -> Rotation:
        """The same with a new axis, counted as in the complex table."""
        return Rotation(self._pairs.unsqueeze(dim if dim >= 0 else dim - 1))

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if function not in (torch.mul, torch.Tensor.mul, torch.Tensor.__mul__):
            return NotImplemented
        rotated, rotation = args
        real, imaginary = torch.view_as_real(rotated).unbind(-1)
        cos, sin = rotation._pairs.unbind(-1)
        parts = real * cos - imaginary * sin, real * sin + imaginary * cos
        return torch.view_as_complex(torch.stack(parts, dim=-1))


class TwoRows:
    """Two rows for each row of the batch, in place of the tensor (2 B, ...) that has all first rows before all second
    ones. Blocks cut it in two by `torch.chunk`, which ONNX cannot do where B is not known.

    Args:
        pairs: (B, 2, ...).
    """

    def __init__(self, pairs: torch.Tensor) -> None:
        self._pairs = pairs

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        rows, *more = args
        if function is torch.chunk:
            return rows._pairs.unbind(1)
        return function(rows._pairs.transpose(0, 1).flatten(0, 1), *more, **(kwargs or {}))
