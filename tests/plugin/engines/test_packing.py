"""Texts of unequal lengths in one engine call: each request gets what it gets alone."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from plugin.denoising.host import PipelineHost
from plugin.engines import make_engine
from plugin.engines.base import Engine
from plugin.engines.packer import PackedEngine, Packer, PackSettings, Ticket
from plugin.engines.packing import joined, longest, may_share_a_call, unpadded
from plugin.families import family_of
from plugin.families.base import BlockInputs, Family
from taylorseer import CacheConfig
from tests.support.tiny import block_inputs_of, latents_of
from tests.support.tiny.declared import DECLARED

SHORT, LONG = "a red apple", "a red apple on a tree in the old garden of a house"
MASKED = ("qwen_image", "z_image", "lumina2", "lumina_next", "ernie_image")
LARGE = {"height": 256, "width": 256}  # where the padding of these texts is less than a quarter of all tokens
_TOKENS = {"lumina2": 32}  # its tiny table of positions is no longer


def inputs_of(name: str, pipe: Any, prompt: str, **options: Any) -> tuple[Family, BlockInputs]:
    """The first inputs of the block stack for a prompt."""
    family = DECLARED[name]
    guidance = next(iter(family.guidance.values())).arguments
    own = family.arguments.get("max_sequence_length")
    limit = {} if own is None else {"max_sequence_length": max(own, _TOKENS.get(name, 64))}
    return block_inputs_of(family, pipe, {**family.arguments, **guidance, **limit, "prompt": prompt, **options})


@pytest.mark.parametrize("name", DECLARED)
def test_a_family_says_whether_its_text_varies(name, tmp_path):
    """Families whose pipelines give the blocks as many tokens as the prompt has say so, and no others do."""
    pipe = DECLARED[name].make(tmp_path, torch.float32)
    size = DECLARED[name].sizes[2]
    (family, short), (_, long) = (inputs_of(name, pipe, prompt, **size) for prompt in (SHORT, 4 * LONG))
    varies = any(short[argument].shape != long[argument].shape for argument in short.keys() & long.keys())
    assert varies == family.text_varies
    assert family.text_varies or family.text_mask is None
    assert (name in MASKED) == (family.text_mask is not None)


@pytest.mark.parametrize("name", MASKED)
def test_a_shorter_text_is_padded_and_its_features_are_those_of_the_request_alone(name, tmp_path):
    pipe = DECLARED[name].make(tmp_path, torch.float32)
    (family, short), (_, long) = (inputs_of(name, pipe, prompt, **LARGE) for prompt in (SHORT, LONG))
    requests = [short, long, short]
    assert not may_share_a_call(family, short, long)
    assert may_share_a_call(family, short, long, pads=True)
    assert may_share_a_call(family, long, short, pads=True)
    assert longest(family, requests) is long
    engine = make_engine("torch", family)
    together = engine.run(joined(family, requests, padding=1)).split([1, 1, 1, 1])
    for features, request in zip(together[:3], requests, strict=True):
        alone = engine.run(request)
        own = unpadded(family, features, request["hidden_states"].shape[1])
        assert own.shape == alone.shape
        # float32: attention sums over more terms, those of the padding being zero; one unmasked token is off by 1e-2
        assert (own - alone).abs().max() <= 1e-5 * alone.abs().max()


@pytest.mark.parametrize("name", MASKED)
def test_texts_that_are_far_longer_have_a_call_of_their_own(name, tmp_path):
    pipe, size = DECLARED[name].make(tmp_path, torch.float32), DECLARED[name].sizes[2]
    (family, short), (_, long) = (inputs_of(name, pipe, prompt, **size) for prompt in ("a", 4 * LONG))
    assert not may_share_a_call(family, short, long, pads=True)


def test_pictures_of_other_sizes_do_not_share_whatever_their_texts(tmp_path):
    """As many tokens and another table of positions."""
    pipe = DECLARED["qwen_image"].make(tmp_path, torch.float32)
    family, short = inputs_of("qwen_image", pipe, SHORT, **LARGE)
    _, wide = inputs_of("qwen_image", pipe, LONG, height=128, width=512)
    assert not may_share_a_call(family, short, wide, pads=True)


class MeetingEngine:
    """An engine whose calls begin once the packer knows all requests: on a busy machine one may end before the next
    has come."""

    def __init__(self, engine: Engine, packer: Packer, requests: int) -> None:
        self.name, self._engine, self._packer, self._requests = engine.name, engine, packer, requests
        self._met = False

    def run(self, inputs: BlockInputs, out: torch.Tensor | None = None) -> torch.Tensor:
        deadline = time.monotonic() + 60
        while not self._met:
            self._met = len(self._packer._present) == self._requests
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return self._engine.run(inputs, out)


@pytest.mark.parametrize("fixed_rows", [None, 2])
def test_requests_of_unequal_texts_share_calls_unless_results_must_not_depend_on_the_company(tmp_path, fixed_rows):
    """With fixed rows each call is of equal texts alone, padded with copies, and results stay bit for bit."""
    family = DECLARED["qwen_image"]
    pipe = family.make(tmp_path, torch.float32)
    served = family_of(pipe.transformer)
    packer = Packer(PackSettings(max_rows=2, max_wait_s=60.0, fixed_rows=fixed_rows))
    engine, tickets = make_engine("torch", served), [Ticket(), Ticket()]

    def run(prompt: str, ticket: Ticket, engine: Engine = engine) -> torch.Tensor:
        host = PipelineHost(pipe)
        host.families["transformer"] = served
        host.engines["transformer"] = packer.engine_for(PackedEngine(engine, engine), served, ticket)
        cached = host.pipeline_for(CacheConfig(interval=3, order=1, warmup_steps=1))
        try:
            return latents_of(cached, **{**family.arguments, **LARGE, "prompt": prompt})
        finally:
            packer.leave(ticket)

    alone = [run(prompt, Ticket()) for prompt in (SHORT, LONG)]
    meeting = MeetingEngine(engine, packer, requests=2)
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(run, (SHORT, LONG), tickets, (meeting, meeting)))
    assert time.monotonic() - began < 60, "requests that cannot share a call do not wait for each other"
    shared = [size for ticket in tickets for size in ticket.batches]
    if fixed_rows is None:
        assert 2 in shared  # the first call begins as soon as its request is there, those after it wait for the other
        for one, other in zip(alone, together, strict=True):
            assert (one - other).abs().max() <= 1e-4 * one.abs().max()  # float32, over five steps
    else:
        assert set(shared) == {1}
        assert all(map(torch.equal, alone, together))
