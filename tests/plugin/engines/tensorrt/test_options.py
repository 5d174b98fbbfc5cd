"""Build options: what decides an engine is in its key, and options that make no sense are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plugin.engines.tensorrt.options import BuildOptions, SizeClass, options_key


def test_whatever_decides_an_engine_is_in_its_key():
    sizes = (SizeClass("16x16", {"image_tokens": 16}), SizeClass("32x32", {"image_tokens": 64}))
    options = BuildOptions((1, 1, 1), sizes)
    others = (
        replace(options, batch=(1, 1, 2)),
        replace(options, sizes=sizes[:1]),
        replace(options, targets=("SM86",)),
        replace(options, workspace_bytes=2**28),
        replace(options, refit=True),
        replace(options, weight_streaming=True),
    )
    keys = [options_key("1.0", ("SM89",), each) for each in (options, *others)]
    keys += [options_key("1.1", ("SM89",), options), options_key("1.0", ("SM90",), options)]
    assert len({*keys}) == 9
    assert options_key("1.0", ("SM89",), replace(options)) == keys[0]


def test_a_batch_in_another_order_and_no_size_are_refused():
    size = SizeClass("16x16", {"image_tokens": 16})
    for batch in ((2, 1, 2), (1, 3, 2), (0, 1, 1)):
        with pytest.raises(ValueError, match=r"batch is .*, must be min,opt,max with 1 <= min <= opt <= max"):
            BuildOptions(batch, (size,))
    with pytest.raises(ValueError, match="sizes is empty, must hold at least one size"):
        BuildOptions((1, 1, 1), ())
