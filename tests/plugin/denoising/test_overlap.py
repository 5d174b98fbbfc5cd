"""Guidance branches at once: the same bits as one after the other, in every pipeline that combines them at the end of a
step, and what a caller may do with a tensor that is not computed yet."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from plugin.denoising.host import PipelineHost
from plugin.denoising.overlap import Later, LateTensor, Look
from plugin.engines import make_engine
from plugin.families.base import BlockInputs, Family
from taylorseer import CacheConfig
from tests.support.parallel import SHARED
from tests.support.tiny import latents_of
from tests.support.tiny.family import TinyFamily

OFF, ON = CacheConfig(interval=1), CacheConfig(interval=3, order=1, warmup_steps=3)
STEPS = 8


class TwoAtOnce:
    """The torch engine, which says that it runs two calls at once, and counts how many it does.

    Attributes:
        met: how many calls found another one in progress, or were found.
        calls: all of them.
    """

    name = "torch"
    calls_at_once = 2

    def __init__(self, family: Family, before: Callable[[int], None] = lambda call: None) -> None:
        self.met, self.calls = 0, 0
        self._engine = make_engine("torch", family)
        self._before = before
        self._lock = threading.Lock()
        self._pair = threading.Barrier(2, timeout=1.0)

    def run(self, inputs: BlockInputs, out: torch.Tensor | None = None) -> torch.Tensor:
        with self._lock:
            self.calls += 1
            call = self.calls
        self._before(call)
        try:
            self._pair.wait()
            with self._lock:
                self.met += 1
        except threading.BrokenBarrierError:
            self._pair.reset()
        return self._engine.run(inputs, out)


def two_calls(family: TinyFamily) -> dict[str, Any]:
    kind = next(kind for kind in family.guidance.values() if kind.calls == 2)
    return {**family.arguments, **family.sizes[0], **kind.arguments, "steps": STEPS}


@pytest.mark.parametrize("cache", [OFF, ON], ids=["off", "on"])
@pytest.mark.parametrize("name", ["flux", "wan", "hunyuan_video", "qwen_image"])
def test_branches_of_full_steps_are_computed_at_once_and_are_the_same_bits(name, cache, tmp_path):
    """Not those of the first step, whose number is not known before."""
    family = SHARED[name]
    pipe = family.make(tmp_path, torch.float32)
    one, two = PipelineHost(pipe), PipelineHost(pipe, TwoAtOnce)
    arguments = two_calls(family)
    expected = latents_of(one.pipeline_for(cache), **arguments)
    served = two.pipeline_for(cache)
    assert torch.equal(latents_of(served, **arguments), expected)
    session, engine = served.transformer.session, two.engines["transformer"]
    assert engine.calls == session.engine_calls
    assert engine.met == session.engine_calls - 2
    if cache is OFF:
        assert torch.equal(expected, latents_of(pipe, **arguments))


def test_with_a_target_error_branches_stay_one_after_the_other(tmp_path):
    """What an audit of one says decides how both go on: it must not matter which of them is first."""
    family = SHARED["wan"]
    host = PipelineHost(family.make(tmp_path, torch.float32), TwoAtOnce)
    cache = CacheConfig(interval=4, order=1, warmup_steps=2, max_error=0.05)
    latents_of(host.pipeline_for(cache), **{**two_calls(family), "steps": 4})
    assert host.engines["transformer"].met == 0


def test_an_error_in_a_branch_that_runs_ahead_reaches_the_caller(tmp_path):
    family = SHARED["wan"]

    def broken(call: int) -> None:
        if call == 3:
            raise ArithmeticError("the third call is broken")

    host = PipelineHost(family.make(tmp_path, torch.float32), lambda family: TwoAtOnce(family, broken))
    with pytest.raises(ArithmeticError, match="the third call is broken"):
        latents_of(host.pipeline_for(OFF), **two_calls(family))


def late(compute: Callable[[], torch.Tensor], shape: tuple[int, ...] = (2, 3)) -> LateTensor:
    look = Look(torch.Size(shape), torch.float32, torch.device("cpu"))
    return LateTensor(look, Later(lambda: (compute(),)))


def test_a_late_tensor_waits_only_when_it_is_read():
    go = threading.Event()

    def compute() -> torch.Tensor:
        go.wait(10)
        return torch.arange(6.0).view(2, 3)

    tensor = late(compute)
    assert (tensor.shape, tensor.dtype, tensor.device) == ((2, 3), torch.float32, torch.device("cpu"))
    assert isinstance(tensor, torch.Tensor)
    go.set()
    expected = torch.arange(6.0).view(2, 3)
    assert torch.equal(tensor[:, :2], expected[:, :2])
    assert type(tensor + 1) is torch.Tensor
    assert torch.equal(1 + 2 * (tensor - expected), torch.ones(2, 3))
    assert torch.equal(torch.cat([tensor, tensor]), torch.cat([expected, expected]))
    assert torch.equal(tensor.to(torch.float64), expected.double())
    assert tensor.sum().item() == 15
    tensor.mul_(2)
    assert torch.equal(tensor.clone(), 2 * expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes_of_torch_are_those_of_the_caller(mode):
    weight = torch.ones(2, 3, requires_grad=True)
    seen: dict[str, Any] = {}

    def compute() -> torch.Tensor:
        product = weight * 2
        seen.update(grad=product.requires_grad, inference=product.is_inference(), matmul=(product @ product.T).dtype)
        return product.detach()

    with mode(), torch.autocast("cpu", torch.bfloat16):
        expected = weight * 2
        assert torch.equal(late(compute) + 0, torch.full((2, 3), 2.0))
    assert seen == {"grad": expected.requires_grad, "inference": expected.is_inference(), "matmul": torch.bfloat16}


@pytest.mark.parametrize("output", [(torch.ones(1), torch.ones(1)), [torch.ones(1)], torch.ones(1), (1,)])
def test_only_one_tensor_in_a_tuple_can_come_late(output):
    assert Look.of(output) is None
    assert Look.of((torch.ones(2, 3),)) == Look(torch.Size((2, 3)), torch.float32, torch.device("cpu"))
