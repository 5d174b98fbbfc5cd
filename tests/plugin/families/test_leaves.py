"""Arguments of blocks as named tensors, which is what engines take, and back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from plugin.families.leaves import leaves, nested

CPU = torch.device("cpu")


def test_arguments_come_back_as_they_were() -> None:
    """By names of their places; of two lists of blocks, each with arguments of its own."""
    table, angles, temb = torch.rand(5, 3), torch.rand(4, 2, dtype=torch.complex64), torch.rand(2, 6)
    arguments: dict[str, Any] = {
        "temb": temb,
        "rotary": (table, None, table + 1),
        "sizes": (angles, 7),
        "attention_kwargs": {"scale": temb},
        "1.temb": temb + 1,
    }
    named = {leaf: each for name, value in arguments.items() for leaf, each in leaves(name, value, CPU)}
    assert {name: tuple(tensor.shape) for name, tensor in named.items()} == {
        "temb": (2, 6),
        "rotary.0": (5, 3),
        "rotary.2": (5, 3),
        "sizes.0.complex": (4, 2, 2),
        "sizes.1.length": (7,),
        "attention_kwargs.scale": (2, 6),
        "1.temb": (2, 6),
    }
    back = nested(named, torch.view_as_complex, lambda _, tensor: tensor)
    assert back.keys() == {"temb", "rotary", "sizes", "attention_kwargs", "1"}
    assert torch.equal(back["temb"], temb)
    assert torch.equal(back["rotary"][0], table)
    assert back["rotary"][1] is None
    assert torch.equal(back["rotary"][2], table + 1)
    assert torch.equal(back["sizes"][0], angles)
    assert back["sizes"][1] == 7
    assert torch.equal(back["attention_kwargs"]["scale"], temb)
    assert torch.equal(back["1"]["temb"], temb + 1)


@pytest.mark.parametrize(("value", "kind"), [(SimpleNamespace(), "SimpleNamespace"), (True, "bool"), (0.5, "float")])
def test_what_is_no_tensor_is_refused_by_its_kind(value: object, kind: str) -> None:
    """FLUX.2 klein KV gives its blocks an object that keeps keys and values."""
    refused = f"^kwargs.kv of the blocks is a {kind}, must be tensors or a whole number to be served$"
    with pytest.raises(ValueError, match=refused):
        list(leaves("kwargs", {"kv": value}, CPU))
