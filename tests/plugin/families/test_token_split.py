"""How a call's arguments are cut: every token once, masks in the order of the tokens, text padded where it must be."""

from __future__ import annotations

import pytest
import torch

from plugin.families.token_split import SplitCall, TokenSplit

AXES = {
    "hidden_states": {0: "batch", 1: "image_tokens"},
    "encoder_hidden_states": {0: "batch", 1: "text_tokens"},
    "mask": {0: "batch", 1: "text_tokens"},
    "table": {0: "all_tokens"},
    "whole_mask": {0: "batch", 3: "all_tokens"},
    "temb": {0: "batch"},
}


def inputs_of(tokens: int, text: int, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """Numbers that say which token each is: those of the picture from 1000 on."""
    picture, words = torch.arange(tokens) + 1000, torch.arange(text)
    return {
        "hidden_states": picture.view(1, -1, 1).expand(2, -1, 3),
        "encoder_hidden_states": words.view(1, -1, 1).expand(2, -1, 3),
        "temb": torch.ones(2, 5),
        **more,
    }


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("tokens", "text"), [(64, 16), (61, 7), (9, 3), (1, 1)])
def test_every_token_is_in_one_process_with_its_row_of_the_table(processes, tokens, text):
    table = torch.cat([torch.arange(text), torch.arange(tokens) + 1000])
    split = SplitCall(TokenSplit(), AXES, inputs_of(tokens, text, table=table), processes)
    parts = [split.part(rank) for rank in range(processes)]
    assert [len(part["hidden_states"][0]) for part in parts] == [split.tokens_of(rank) for rank in range(processes)]
    joined = torch.cat([part["hidden_states"] for part in parts], dim=1)
    assert torch.equal(joined, inputs_of(tokens, text)["hidden_states"])
    for part in parts:
        own = torch.cat([part["encoder_hidden_states"][0, :, 0], part["hidden_states"][0, :, 0]])
        assert torch.equal(part["table"], own)
        assert part["temb"].shape == (2, 5)
    assert split.even == (not tokens % processes and not text % processes)


def test_a_mask_over_all_is_in_the_order_in_which_the_attention_of_all_has_the_tokens():
    mask = torch.cat([torch.arange(9) + 1000, torch.arange(4)]).view(1, 1, 1, -1).expand(2, -1, -1, -1)
    split = SplitCall(TokenSplit(picture_first=True, whole=("whole_mask",)), AXES, inputs_of(9, 4, whole_mask=mask), 3)
    parts = [split.part(rank) for rank in range(3)]
    order = torch.cat([part[name][0, :, 0] for part in parts for name in ("hidden_states", "encoder_hidden_states")])
    for part in parts:
        assert torch.equal(part["whole_mask"][0, 0, 0], order)


def test_text_that_is_attended_to_across_is_in_every_process():
    split = SplitCall(TokenSplit(text=False), AXES, inputs_of(9, 5), 4)
    for rank in range(4):
        assert torch.equal(split.part(rank)["encoder_hidden_states"], inputs_of(9, 5)["encoder_hidden_states"])
    assert SplitCall(TokenSplit(text=False), AXES, inputs_of(8, 5), 4).even


@pytest.mark.parametrize("given", [True, False])
def test_text_is_padded_with_tokens_that_do_not_count(given):
    own = {"mask": torch.tensor([[True, False, True, True, True]] * 2)} if given else {}
    split = SplitCall(TokenSplit(text_mask="mask"), AXES, inputs_of(16, 5, **own), 4)
    parts = [split.part(rank) for rank in range(4)]
    masks = torch.cat([part["mask"] for part in parts], dim=1)
    assert torch.equal(masks[:, :5], own.get("mask", torch.ones(2, 5, dtype=torch.bool)))
    assert not masks[:, 5:].any()
    assert masks.shape == (2, 8)
    assert split.even


def test_text_that_divides_needs_no_mask():
    split = SplitCall(TokenSplit(text_mask="mask"), AXES, inputs_of(16, 8), 4)
    assert "mask" not in split.part(0)


@pytest.mark.parametrize(
    ("tokens", "fit"), [(16, True), (15, True), (13, True), (9, True), (6, True), (5, False), (4, True), (2, False)]
)
def test_masks_that_diffusers_would_join_in_another_order_than_the_tokens_are_found(tokens, fit):
    """It pads each process's mask to the longest and cuts the end off: right if the last one alone is shorter."""
    own = {"mask": torch.ones(2, 4, dtype=torch.bool)}
    split = SplitCall(TokenSplit(text_mask="mask"), AXES, inputs_of(tokens, 4, **own), 4)
    counts = [split.tokens_of(rank) + 1 for rank in range(4)]
    padded = torch.cat([torch.arange(max(counts)) < count for count in counts])[: sum(counts)]
    assert split.masks_fit == bool(padded.all()) == fit
