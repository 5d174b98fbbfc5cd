"""The arguments of blocks as tensors by names, which is what engines take, and back again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch


def nested(
    leaves: Mapping[str, torch.Tensor],
    complex_numbers: Callable[[torch.Tensor], Any],
    as_called: Callable[[str, torch.Tensor], torch.Tensor],
) -> dict[str, Any]:
    """The arguments of blocks from their tensors, by names that say where each belongs.

    "temb" is an argument; "rotary.0" the first of a tuple; "rotary.complex" a tensor of complex numbers, given as pairs
    (..., 2) of real ones; "height.length" a whole number, given as the length of a tensor, because that is what engines
    can vary; "1.temb" an argument of the second list of blocks alone.

    Args:
        leaves: tensors by such names.
        complex_numbers: makes what blocks get in place of complex numbers.
        as_called: brings a tensor of an argument into the form that blocks take.
    """
    tree: dict[str, Any] = {}
    for name, tensor in leaves.items():
        *path, end = name.split(".")
        at = tree
        for part in path:
            at = at.setdefault(part, {})
        argument = next(part for part in (*path, end) if not part.isdigit())
        at[end] = as_called(argument, tensor)
    return {name: _value(each, complex_numbers) for name, each in tree.items()}


def _value(tree: Any, complex_numbers: Callable[[torch.Tensor], Any]) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "complex" in tree:
        return complex_numbers(tree["complex"])
    if "length" in tree:
        return tree["length"].shape[0]
    values = {name: _value(each, complex_numbers) for name, each in tree.items()}
    if all(name.isdigit() for name in values):
        return tuple(values.get(str(index)) for index in range(1 + max(map(int, values))))
    return values  # of a further list of blocks


def leaves(name: str, value: Any, device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of an argument by the names of `nested`."""
    if isinstance(value, torch.Tensor):
        yield (f"{name}.complex", torch.view_as_real(value)) if value.is_complex() else (name, value)
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from leaves(f"{name}.{index}", each, device)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield f"{name}.length", torch.zeros(value, dtype=torch.bool, device=device)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(f"{name}.{key}", each, device)
    elif value is not None:
        kind = type(value).__name__
        raise ValueError(f"{name} of the blocks is a {kind}, must be tensors or a whole number to be served")
