"""Processes that are killed, stopped or left alone: calls end with an error that says so, and nothing stays behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from plugin.denoising.host import PipelineHost
from plugin.engines.base import EngineError
from plugin.engines.parallel.engine import Team
from plugin.engines.parallel.processes import ProcessesLost
from plugin.families import family_of
from plugin.families.token_split import SplitCall
from plugin.parallelism import Parallelism
from tests.support.parallel import engine_of, four_heads
from tests.support.paths import ROOT
from tests.support.tiny.dit import tiny_dit
from tests.support.waiting import wait_for

SILENCE_S = 3.0


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return four_heads("wan", tmp_path_factory.mktemp("wan"))


@pytest.fixture
def team(pipe: Any) -> Iterator[Team]:
    team = Team({"transformer": family_of(pipe.transformer)}, Parallelism(2), threads=1, silence_s=SILENCE_S)
    yield team
    team.close()


def call_of(team: Team, pipe: Any, tokens: int = 24) -> Callable[[], Any]:
    """A function that makes one call; of 30,000 tokens it takes seconds."""
    family = family_of(pipe.transformer)
    engine = engine_of(team, "transformer", family)
    inputs = family.inputs_of_size({"batch": 1, **family.axis_sizes(tokens, 16)})
    return lambda: engine.run(inputs)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_process_is_killed_between_calls(team, pipe):
    call = call_of(team, pipe)
    call()
    os.kill(team.processes.pids[1], signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(ProcessesLost, match="process 1 of the engine, on cpu, was ended by SIGKILL"):
            call()
    assert engine_of(team, "transformer", family_of(pipe.transformer)).failure == team.processes.failure


def test_a_process_is_killed_in_the_middle_of_a_call(team, pipe):
    with ThreadPoolExecutor(1) as thread:
        calling = thread.submit(call_of(team, pipe, 30_000))
        time.sleep(0.5)
        assert not calling.done()
        os.kill(team.processes.pids[1], signal.SIGKILL)
        with pytest.raises(ProcessesLost, match="was ended by SIGKILL"):
            calling.result(timeout=10)


def test_a_process_hangs_in_the_middle_of_a_call(team, pipe):
    with ThreadPoolExecutor(1) as thread:
        calling = thread.submit(call_of(team, pipe, 30_000))
        time.sleep(0.5)
        os.kill(team.processes.pids[1], signal.SIGSTOP)
        with pytest.raises(ProcessesLost, match="process 1 of the engine, on cpu, gave no sign of life for 3 s"):
            calling.result(timeout=SILENCE_S + 10)
    wait_for(lambda: is_gone(team.processes.pids[1]), "the process that hangs has ended")


def test_an_error_in_one_process_alone_ends_the_call_and_the_engine(team, pipe, monkeypatch):
    """The other one waits in an exchange that will never come."""
    monkeypatch.setattr("plugin.engines.parallel.processes._GRACE_S", 1.0)
    part = SplitCall.part

    def wrong_for_one(self: SplitCall, rank: int) -> dict[str, torch.Tensor]:
        inputs = part(self, rank)
        return {**inputs, "temb": inputs["temb"][..., :5]} if rank == 1 else inputs

    monkeypatch.setattr(SplitCall, "part", wrong_for_one)
    call = call_of(team, pipe)
    with pytest.raises(ProcessesLost, match=r"one process and not in the others: process 1 .*, RuntimeError: .*size"):
        call()
    monkeypatch.undo()
    with pytest.raises(ProcessesLost):
        call()


def test_an_error_in_every_process_is_settled_with_its_call(team, pipe, monkeypatch):
    """Also where a process says that it has raised after the call has ended: nothing is held against it later."""
    monkeypatch.setattr("plugin.engines.parallel.processes._GRACE_S", 0.5)
    call, engine = call_of(team, pipe), engine_of(team, "transformer", family_of(pipe.transformer))
    inputs = family_of(pipe.transformer).inputs_of_size({"batch": 1, **family_of(pipe.transformer).axis_sizes(24, 16)})
    for _ in range(3):
        with pytest.raises(RuntimeError, match=r"size|shape"):
            engine.run({**inputs, "temb": inputs["temb"][..., :5]})
        time.sleep(1.5)
        assert team.processes.failure is None
    call()


def test_one_process_alone_is_the_torch_engine(pipe):
    family = family_of(pipe.transformer)
    inputs = family.inputs_of_size({"batch": 2, **family.axis_sizes(24, 16)})
    with torch.no_grad():
        expected = family.block_stack()(**inputs)
    team = Team({"transformer": family}, Parallelism(1), threads=1)
    try:
        assert torch.equal(engine_of(team, "transformer", family).run(inputs), expected)
        assert team.calls == (1,)
    finally:
        team.close()
        team.close()  # each engine of a model closes it


def test_closing_ends_every_process_and_frees_the_way_for_another_team(pipe):
    families = {"transformer": family_of(pipe.transformer)}
    for _ in range(2):
        team = Team(families, Parallelism(2), threads=1)
        pid = team.processes.pids[1]
        call_of(team, pipe)()
        team.close()
        assert is_gone(pid)


def test_what_a_closed_team_leaves_writes_to_no_file_that_is_opened_later(pipe, tmp_path):
    """torch.distributed's objects end when the garbage collector finds them: its file descriptors are others' then."""
    team = Team({"transformer": family_of(pipe.transformer)}, Parallelism(2), threads=1)
    team.close()
    del team
    with ExitStack() as stack:
        files = [stack.enter_context((tmp_path / str(number)).open("w")) for number in range(50)]
        gc.collect()
        assert [os.fstat(file.fileno()).st_size for file in files] == [0] * len(files)


ALONE = """
import sys, tempfile, time
from pathlib import Path
from plugin.engines.parallel.engine import Team
from plugin.families import family_of
from plugin.parallelism import Parallelism
from tests.support.parallel import four_heads

pipe = four_heads("wan", Path(tempfile.mkdtemp()))
team = Team({"transformer": family_of(pipe.transformer)}, Parallelism(1, 3), threads=1)
print(*team.processes.pids.values(), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_models_process(how):
    """Also not a process that has been stopped."""
    parent = subprocess.Popen([sys.executable, "-c", ALONE], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGSTOP)
    parent.send_signal(how)
    parent.wait(timeout=10)
    wait_for(lambda: all(map(is_gone, pids)), "both processes have ended", timeout_s=10)


def test_a_process_that_cannot_start_is_said(pipe, monkeypatch):
    monkeypatch.setattr("plugin.engines.parallel.processes._python", lambda: "/bin/false")
    with pytest.raises(ProcessesLost, match="process 1 of the engine, on cpu, ended with status 1"):
        PipelineHost(pipe, "parallel")


def test_heads_that_cannot_be_shared_are_refused(pipe):
    with pytest.raises(EngineError, match=r"sequence_parallel is 8, must be one of 1, 2, 4: .* has 4 heads"):
        PipelineHost(pipe, "parallel", parallelism=Parallelism(8))


def test_transformers_whose_tokens_cannot_be_shared_are_refused():
    with pytest.raises(EngineError, match=r"sequence_parallel is 2, must be 1: .* tokens of DiTTransformer2DModel"):
        PipelineHost(tiny_dit(), "parallel")


def test_gpus_that_are_not_there_are_refused(pipe):
    with pytest.raises(ValueError, match="devices is cuda:0, cuda:1, must begin with the pipeline's device, cpu"):
        PipelineHost(pipe, "parallel", parallelism=Parallelism(2, devices=("cuda:0", "cuda:1")))
