"""Several requests' block inputs in one engine call: which may share one, and how they are joined."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from plugin.families.base import BlockInputs, Family


def is_shared(family: Family, name: str) -> bool:
    """Whether all rows of an engine call share this argument of the block stack."""
    return "batch" not in family.block_axes[name].values()


def may_share_a_call(family: Family, one: BlockInputs, other: BlockInputs) -> bool:
    """Whether two requests can be rows of one engine call: same dtypes and shapes, and shared inputs equal in content.

    Rotary tables of another height x width differ even at the same number of tokens.
    """
    if one.keys() != other.keys():
        return False
    for name, tensor in one.items():
        theirs, shared = other[name], is_shared(family, name)
        if tensor.dtype != theirs.dtype or tensor.shape[not shared :] != theirs.shape[not shared :]:
            return False
        if shared and not torch.equal(tensor, theirs):
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
