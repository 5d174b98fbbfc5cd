"""One call shared by several processes: what comes out is what the engine alone gives, and every process takes part in
every full step and in no forecast."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from plugin.denoising.host import PipelineHost
from plugin.engines.base import EngineError
from plugin.engines.packer import PackSettings
from plugin.engines.parallel.engine import Team
from plugin.families import family_of
from plugin.parallelism import Parallelism, exchanged_bytes
from taylorseer import CacheConfig
from tests.support.parallel import EVEN, ODD, SHARED, engine_of, four_heads
from tests.support.tiny import latents_of
from tests.support.tiny.dit import FAMILY as DIT
from tests.support.tiny.dit import tiny_dit

OFF, ON = CacheConfig(interval=1), CacheConfig(interval=3, order=1, warmup_steps=2)
STEPS = 8
# Of the latents after all steps, in float32: matrices of other heights are summed in another order. A part of the wrong
# table or mask is off by tenths.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {name: four_heads(name, tmp_path_factory.mktemp(name)) for name in SHARED}


@pytest.fixture(scope="module")
def dit() -> Any:
    return tiny_dit()


@pytest.fixture(scope="module", params=[(2, 1), (4, 1), (1, 2), (2, 2)], ids=lambda each: f"{each[0]}x{each[1]}")
def team(request: pytest.FixtureRequest, pipes: dict[str, Any], dit: Any) -> Iterator[Team]:
    families = {name: family_of(pipe.transformer) for name, pipe in pipes.items()}
    if request.param[0] == 1:  # processes that share no tokens can have any family
        families["dit"] = family_of(dit.transformer)
    team = Team(families, Parallelism(*request.param), threads=1)
    yield team
    team.close()


def host_of(team: Team, name: str, pipe: Any) -> PipelineHost:
    return PipelineHost(pipe, partial(engine_of, team, name))


def arguments_of(name: str, size: dict[str, Any], guidance: int) -> dict[str, Any]:
    kind = [*SHARED[name].guidance.values()][guidance]
    return {**SHARED[name].arguments, **kind.arguments, **size, "steps": STEPS}


@pytest.mark.parametrize("cache", [OFF, ON], ids=["off", "on"])
@pytest.mark.parametrize("name", SHARED)
def test_equals_the_engine_alone_and_each_process_takes_part_in_full_steps_alone(team, pipes, name, cache):
    alone, shared = PipelineHost(pipes[name]), host_of(team, name, pipes[name])
    for size, guidance in ((EVEN[name], 0), (ODD[name], -1)):
        arguments = arguments_of(name, size, guidance)
        expected = latents_of(alone.pipeline_for(cache), **arguments)
        before, pipe = team.calls, shared.pipeline_for(cache)
        latents = latents_of(pipe, **arguments)
        assert (latents - expected).abs().max() <= TOLERANCE * expected.abs().max(), size
        session = pipe.transformer.session
        branches = [*SHARED[name].guidance.values()][guidance].calls
        assert session.engine_calls == branches * len(session.full_steps)
        assert len(session.full_steps) == (STEPS if cache is OFF else 4)
        calls = [after - earlier for after, earlier in zip(team.calls, before, strict=True)]
        groups = [calls[rank : rank + team.place.sequence] for rank in range(0, len(calls), team.place.sequence)]
        assert all(len(set(group)) == 1 for group in groups)
        assert sum(group[0] for group in groups) == session.engine_calls


def test_eight_mixed_requests_at_once(team, pipes):
    """Two sizes, with and without guidance, cache on and off, packed; each is what it is when it runs alone."""
    host = host_of(team, "flux", pipes["flux"])
    host.pack(PackSettings(4, max_wait_s=0.02, lanes=team.place.groups))
    calls = [
        (cache, {**arguments_of("flux", size, guidance), "seed": seed})
        for seed, (size, guidance, cache) in enumerate(
            (size, guidance, cache)
            for size in (EVEN["flux"], ODD["flux"])
            for guidance in (0, 1)
            for cache in (OFF, ON)
        )
    ]

    def run(cache: CacheConfig, arguments: dict[str, Any]) -> torch.Tensor:
        return latents_of(host.pipeline_for(cache), **arguments)

    alone = PipelineHost(pipes["flux"])
    with ThreadPoolExecutor(len(calls)) as threads:
        together = [*threads.map(lambda call: run(*call), calls)]
    for (cache, arguments), latents in zip(calls, together, strict=True):
        expected = latents_of(alone.pipeline_for(cache), **arguments)
        assert (latents - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_rows_of_a_call_go_to_the_groups(team, pipes, rows):
    family = family_of(pipes["wan"].transformer)
    inputs = family.inputs_of_size({"batch": rows, **family.axis_sizes(24, 16)})
    before, out = team.calls, torch.empty_like(inputs["hidden_states"])
    with torch.no_grad():
        expected = family.block_stack()(**inputs)
    assert engine_of(team, "wan", family).run(inputs, out) is out
    assert (out - expected).abs().max() <= TOLERANCE * expected.abs().max()
    added = [after - earlier for after, earlier in zip(team.calls, before, strict=True)]
    assert added == [int(rank < team.place.sequence * rows) for rank in range(len(added))]


def test_both_branches_of_a_batch_go_to_the_groups(team, dit):
    """DiT's pipeline gives the transformer both as one batch; its tokens cannot be shared, its rows can."""
    if team.place.sequence > 1:
        pytest.skip("this team shares tokens")
    arguments = {**DIT.arguments, "guidance_scale": 4.0, "steps": STEPS}
    expected = latents_of(PipelineHost(dit).pipeline_for(ON), **arguments)
    before, pipe = team.calls, host_of(team, "dit", dit).pipeline_for(ON)
    assert (latents_of(pipe, **arguments) - expected).abs().max() <= TOLERANCE * expected.abs().max()
    added = [after - earlier for after, earlier in zip(team.calls, before, strict=True)]
    assert added == [len(pipe.transformer.session.full_steps)] * 2


def test_an_error_in_every_process_is_that_calls_alone(team, pipes):
    family = family_of(pipes["wan"].transformer)
    engine = engine_of(team, "wan", family)
    inputs = family.inputs_of_size({"batch": 1, **family.axis_sizes(24, 16)})
    with pytest.raises((RuntimeError, EngineError), match=r"shape|size|dimension"):
        engine.run({**inputs, "temb": inputs["temb"][..., :5]})
    with torch.no_grad():
        expected = family.block_stack()(**inputs)
    assert (engine.run(inputs) - expected).abs().max() <= TOLERANCE * expected.abs().max()


class SentBytes(TorchDispatchMode):
    """Counts what this process hands to exchanges in its own thread, of which it keeps one part in N."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops._c10d_functional.all_to_all_single.default:
            self.nbytes += args[0].nbytes
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [1, 2])
def test_processes_send_each_other_as_many_bytes_as_the_formula_says(team, pipes, rows):
    """Exactly, where tokens and heads divide."""
    family, sequence = family_of(pipes["flux"].transformer), team.place.sequence
    inputs = family.inputs_of_size({"batch": rows, **family.axis_sizes(64, 16)})
    with SentBytes() as sent:
        engine_of(team, "flux", family).run(inputs)
    by_one = sent.nbytes * (sequence - 1) // sequence
    own_rows = -(-rows // team.place.groups)  # the first group's
    assert by_one * sequence == exchanged_bytes(64 + 16, 4 * 16, 2 + 3, own_rows, 4, sequence)


def test_weights_are_in_memory_once(team):
    """Each page of shared memory counts in part for each process that maps it (Pss); together they are its size."""
    first, *others = ("self", *map(str, team.processes.pids.values()))
    (memory,) = {inode for process in others for inode in _weights_in(process)}
    size, own = _weights_in(first)[memory]
    together = own + sum(_weights_in(process)[memory][1] for process in others)
    assert size > 2**20
    assert together == pytest.approx(size, rel=0.01)  # shares of a page are rounded down


def test_a_process_has_one_team(team, pipes):
    with pytest.raises(EngineError, match="a process can have one parallel engine"):
        Team({"flux": family_of(pipes["flux"].transformer)}, Parallelism(2))


def _weights_in(process: str) -> dict[str, tuple[int, int]]:
    """The shared memory that a process maps: inode -> its size, and what of it counts for this process, in bytes."""
    found: dict[str, tuple[int, int]] = {}
    for mapping in re.findall(r"^[0-9a-f]+-.*?VmFlags", Path(f"/proc/{process}/smaps").read_text(), re.M | re.S):
        if "memfd:weights" in mapping:
            size, share = (int(re.search(rf"^{name}: +(\d+) kB", mapping, re.M)[1]) for name in ("Size", "Pss"))
            found[mapping.split()[4]] = size * 1024, share * 1024
    return found
