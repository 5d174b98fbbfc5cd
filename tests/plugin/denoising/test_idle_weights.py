"""Weights that are on their device only while calls use them: when they move, and that nothing reads them meanwhile."""

from __future__ import annotations

import copy
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from plugin.denoising.idle_weights import IdleWeights
from plugin.memory import resident_bytes
from tests.support.waiting import wait_for

CPU = torch.device("cpu")


class Module(nn.Module):
    """Weights of several dtypes and odd lengths, tied ones, a buffer, and numbers that are not floats."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(7, 5)
        self.tied = nn.Linear(7, 5, bias=False)
        self.tied.weight = self.first.weight
        self.short = nn.Parameter(torch.randn(3, 3).to(torch.bfloat16))
        self.empty = nn.Parameter(torch.empty(0))
        self.across = nn.Parameter(torch.randn(4, 6).T)  # not contiguous, as weights in channels_last
        self.apart = nn.Parameter(torch.randn(5, 9)[:, ::4])  # with holes: it stays where it is
        self.register_buffer("mean", torch.randn(11, dtype=torch.float64))
        self.register_buffer("counts", torch.arange(3))


@pytest.fixture
def module() -> Module:
    return Module()


def contents(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_weights_are_there_for_calls_and_are_no_numbers_between_them(module, tmp_path):
    expected, objects = contents(module), [*module.parameters(), *module.buffers()]
    idle = IdleWeights(module, CPU, tmp_path)
    for _ in range(2):
        assert all(module.first.weight.isnan().flatten())
        assert module.first.weight.shape == (5, 7)
        assert torch.equal(module.counts, torch.zeros(3, dtype=torch.int64))
        with idle.in_use():
            assert equal(contents(module), expected)
            assert module.tied.weight is module.first.weight
            assert module.across.stride() == (1, 6)
    assert all(one is other for one, other in zip(objects, [*module.parameters(), *module.buffers()], strict=True))
    assert idle.nbytes == (5 * 7 + 5) * 4 + 9 * 2 + 4 * 6 * 4 + 11 * 8 + 3 * 8


def test_weights_that_come_back_are_aligned_as_those_of_torch(module, tmp_path):
    """Products of a matrix and a vector differ in their last bits otherwise (measured: float32 on an AMD EPYC)."""
    with IdleWeights(module, CPU, tmp_path).in_use():
        assert {each.data_ptr() % 64 for each in [*module.parameters(), *module.buffers()] if each.numel()} == {0}


def test_the_last_of_several_calls_sends_them_away(module, tmp_path):
    expected = contents(module)
    idle = IdleWeights(module, CPU, tmp_path)
    first, second = idle.in_use(), idle.in_use()
    first.__enter__()
    where = module.first.weight.data_ptr()
    second.__enter__()
    assert module.first.weight.data_ptr() == where, "a second call moves nothing"
    first.__exit__(None, None, None)
    assert equal(contents(module), expected)
    second.__exit__(None, None, None)
    assert module.first.weight.isnan().all()
    assert idle.users == 0


def test_a_call_that_raises_sends_them_away(module, tmp_path):
    idle = IdleWeights(module, CPU, tmp_path)
    with pytest.raises(RuntimeError, match="on purpose"), idle.in_use():
        raise RuntimeError("on purpose")
    assert (idle.users, bool(module.first.weight.isnan().all())) == (0, True)


def test_many_threads_come_and_go_and_each_finds_them(module, tmp_path):
    expected = contents(module)
    idle = IdleWeights(module, CPU, tmp_path)
    wrong: list[int] = []
    begin = threading.Barrier(8)

    def use() -> None:
        begin.wait()
        for number in range(200):
            with idle.in_use():
                if not torch.equal(module.first.weight, expected["first.weight"]):
                    wrong.append(number)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert (idle.users, bool(module.first.weight.isnan().all())) == (0, True)


def test_one_that_comes_while_they_are_brought_waits_for_all_of_them(module, tmp_path, monkeypatch):
    idle = IdleWeights(module, CPU, tmp_path)
    brought, go_on, order = idle._home.brought, threading.Event(), []

    def slowly() -> object:
        order.append("bring")
        assert go_on.wait(30)
        return brought()

    monkeypatch.setattr(idle._home, "brought", slowly)

    def use() -> None:
        with idle.in_use():
            order.append("there" if not module.first.weight.isnan().any() else "away")

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_for(lambda: order == ["bring"])
    go_on.set()
    for thread in threads:
        thread.join()
    assert order.count("there") == 2
    assert "away" not in order


def test_a_copy_of_the_module_shares_what_moves(module, tmp_path):
    expected = contents(module)
    idle = IdleWeights(module, CPU, tmp_path)
    copied = copy.copy(module)
    assert copied.first.weight.isnan().all()
    with idle.in_use():
        assert equal(contents(copied), expected)
    assert copied.mean.isnan().all()


def test_inside_inference_mode_they_are_ordinary_tensors(module, tmp_path):
    idle = IdleWeights(module, CPU, tmp_path)
    with torch.inference_mode(), idle.in_use():
        assert not module.first.weight.is_inference()
    with idle.in_use():
        module.first(torch.ones(7)).sum().backward()
        assert module.first.weight.grad is not None


def test_idle_weights_leave_main_memory_and_the_folder_has_no_file(tmp_path):
    """On a CPU main memory is the device, so idle weights are in a file that has no name."""
    nbytes = 64 * 2**20
    module = nn.Linear(4096, 4096, bias=False)
    assert module.weight.nbytes == nbytes
    before = resident_bytes()
    idle = IdleWeights(module, CPU, tmp_path)
    away = resident_bytes()
    assert before - away > 0.95 * nbytes
    with idle.in_use():
        assert module.weight.sum().isfinite()
        assert resident_bytes() - away > 0.95 * nbytes, "all of it has been read"
    assert resident_bytes() - away < 0.05 * nbytes
    assert not list(tmp_path.iterdir())


def test_quantised_weights_are_refused(tmp_path):
    module = nn.Sequential(nn.Linear(32, 32))
    quantize_(module, Int8WeightOnlyConfig())
    with pytest.raises(ValueError, match="Sequential has quantised weights, which cannot be idle: leave its"):
        IdleWeights(module, CPU, tmp_path)


@pytest.fixture
def small_files() -> Iterator[int]:
    """The most bytes that a file may have meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    yield 100
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_cannot_be_written_is_an_error_and_the_weights_stay(module, tmp_path, small_files):
    expected = contents(module)
    with pytest.raises(OSError, match="File too large"):
        IdleWeights(module, CPU, Path(tmp_path))
    assert equal(contents(module), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_idle_weights_leave_the_gpu(module):
    expected = contents(module)
    idle = IdleWeights(module.to("cuda"), torch.device("cuda"))
    assert {each.device.type for each in module.parameters()} == {"cpu"}
    before = torch.cuda.memory_allocated()
    with idle.in_use():
        assert {each.device.type for each in module.parameters() if each.numel()} == {"cuda"}
        assert equal({name: value.cpu() for name, value in contents(module).items()}, expected)
        assert torch.cuda.memory_allocated() > before
    assert torch.cuda.memory_allocated() == before
    assert equal(contents(module), expected)
