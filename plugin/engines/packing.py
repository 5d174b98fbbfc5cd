"""Several requests' block inputs in one engine call: which may share one, and how they are joined.

Texts of unequal lengths can share a call where the blocks take a mask: the shorter ones are padded, and the mask says
which tokens count.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import pad

from plugin.families.base import BlockInputs, Family

# Padding is computed like any token: beyond a quarter, a call of its own is cheaper than what sharing one saves.
_MOST_PADDING = 0.25


def is_shared(family: Family, name: str) -> bool:
    """Whether all rows of an engine call share this argument of the block stack."""
    return "batch" not in family.block_axes[name].values()


def may_share_a_call(family: Family, one: BlockInputs, other: BlockInputs, *, pads: bool = False) -> bool:
    """Whether two requests can be rows of one engine call: same dtypes and shapes, and shared inputs equal in content.

    Rotary tables of another height x width differ even at the same number of tokens.

    Args:
        family: of the block stack.
        one, other: their inputs.
        pads: whether the shorter text may be padded to the length of the longer one.
    """
    if one.keys() != other.keys() or any(one[name].shape[1:] != other[name].shape[1:] for name in one):
        if not pads or family.text_mask is None or not (one.keys() | other.keys()) <= family.example_inputs().keys():
            return False
        one, other = family.completed(one), family.completed(other)
        if one.keys() != other.keys() or _padding(family, one, other) > _MOST_PADDING:
            return False
    for name, tensor in one.items():
        mine, theirs = _of_equal_text(family, name, tensor, other[name])
        shared = is_shared(family, name)
        if mine.dtype != theirs.dtype or mine.shape[not shared :] != theirs.shape[not shared :]:
            return False
        if shared and not torch.equal(mine, theirs):
            return False
    return True


def joined(family: Family, requests: Sequence[BlockInputs], padding: int = 0) -> BlockInputs:
    """The inputs of one call: the rows of all requests in order, and shared inputs once.

    Args:
        family: of the block stack.
        requests: at least one; they may share a call.
        padding: how many copies of the last row to add at the end.
    """
    if len(requests) == 1 and not padding:
        return requests[0]
    requests = _of_one_length(family, requests)
    together: BlockInputs = {}
    for name, tensor in requests[0].items():
        if is_shared(family, name):
            together[name] = tensor
            continue
        rows = [each[name] for each in requests]
        if padding:
            last = rows[-1][-1:]
            rows.append(last.expand(padding, *last.shape[1:]))
        together[name] = torch.cat(rows)
    return together


def unpadded(family: Family, features: torch.Tensor, tokens: int) -> torch.Tensor:
    """A request's part of a call's features, (rows, tokens, D), without the padding of its text."""
    more = features.shape[1] - tokens
    return features.narrow(1, more if family.text_first else 0, tokens) if more else features


def longest(family: Family, requests: Sequence[BlockInputs]) -> BlockInputs:
    """The request with the longest text; the first of them where several have as long ones."""
    return max(requests, key=lambda each: _text_tokens(family, each))


def _text_axis(family: Family, name: str) -> int | None:
    """The axis of an argument that has the tokens of the text, alone or beside those of the picture."""
    axes = family.block_axes[name].items()
    return next((axis for axis, length in axes if length.startswith(("text_tokens", "all_tokens"))), None)


def _text_tokens(family: Family, inputs: BlockInputs) -> int:
    """Tokens along the axis that the text is on; for comparing requests of one size."""
    if family.text_mask is None:
        return 0
    axes = ((name, _text_axis(family, name)) for name in inputs)
    return max(inputs[name].shape[axis] for name, axis in axes if axis is not None)


def _padding(family: Family, one: BlockInputs, other: BlockInputs) -> float:
    """How many tokens a call would pad, as a part of those of the shorter request."""
    few, many = sorted(_text_tokens(family, each) for each in (one, other))
    return (many - few) / max(few, one["hidden_states"].shape[1])


def _before(family: Family, name: str, axis: int) -> bool:
    """Whether padding stands before the tokens: in a stream of both that the text begins, it must not come between
    text and picture."""
    return family.text_first and family.block_axes[name][axis].startswith("all_tokens")


def _of_equal_text(
    family: Family, name: str, one: torch.Tensor, other: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two requests' argument as far as padding leaves it alone."""
    axis = _text_axis(family, name) if family.text_mask is not None else None
    if axis is None or one.shape[axis] == other.shape[axis]:
        return one, other
    tokens = min(one.shape[axis], other.shape[axis])
    first, second = (
        each.narrow(axis, each.shape[axis] - tokens if _before(family, name, axis) else 0, tokens)
        for each in (one, other)
    )
    return first, second


def _of_one_length(family: Family, requests: Sequence[BlockInputs]) -> Sequence[BlockInputs]:
    """The requests with their texts padded to the longest; zeros, which in a mask are tokens that do not count."""
    lengths = {_text_tokens(family, each) for each in requests}
    if len(lengths) == 1 and len({frozenset(each) for each in requests}) == 1:
        return requests
    requests = [family.completed(each) for each in requests]
    most = longest(family, requests)
    same = []
    for request in requests:
        padded = dict(request)
        for name, tensor in request.items():
            axis = _text_axis(family, name)
            if axis is None or (more := most[name].shape[axis] - tensor.shape[axis]) == 0:
                continue
            if is_shared(family, name):
                padded[name] = most[name]
                continue
            sides = (more, 0) if _before(family, name, axis) else (0, more)
            fill = float("-inf") if name == family.text_mask and tensor.is_floating_point() else 0
            padded[name] = pad(tensor, (0, 0) * (tensor.ndim - 1 - axis) + sides, value=fill)
        same.append(padded)
    return same
