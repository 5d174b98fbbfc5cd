"""The embeddings of the latest prompts: the same bits without encoding, within a budget, apart for each branch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from plugin.denoising.host import PipelineHost
from plugin.denoising.text_cache import TextCache
from taylorseer import CacheConfig


class Encoder:
    """Returns 40 bytes for each prompt, and counts."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def encode_prompt(self, prompt: Any, **options: Any) -> Any:
        self.calls.append((prompt, options))
        return [torch.full((5,), float(len(self.calls)))], (torch.zeros(5), None)


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


def test_equal_arguments_are_encoded_once_and_give_the_same(encoder):
    cache = TextCache(1000)
    options = {"template": {"text": "{}", "crop": 95}, "device": torch.device("cpu"), "dtype": torch.float32}
    first, again = (cache.wrap(encoder.encode_prompt)("apple", **options) for _ in range(2))
    assert len(encoder.calls) == 1
    assert (cache.hits, cache.misses) == (1, 1)
    assert torch.equal(first[0][0], again[0][0])
    assert again[1][1] is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("apple",), ("Apple",)),
        (("apple",), (["apple"],)),
        (("apple", {"n": 1}), ("apple", {"n": 2})),
        (("apple", {"n": 1}), ("apple", {"n": True})),
        (("apple", {"dtype": torch.float32}), ("apple", {"dtype": torch.float16})),
        (("apple", {"template": {"crop": 1}}), ("apple", {"template": {"crop": 2}})),
    ],
)
def test_whatever_differs_is_encoded_again(encoder, one, other):
    encode = TextCache(1000).wrap(encoder.encode_prompt)
    for prompt, *options in (one, other):
        encode(prompt, **(options[0] if options else {}))
    assert len(encoder.calls) == 2


def test_calls_that_are_given_embeddings_go_through(encoder):
    cache = TextCache(1000)
    for _ in range(2):
        cache.wrap(encoder.encode_prompt)(None, prompt_embeds=torch.zeros(1))
    assert len(encoder.calls) == 2
    assert (cache.hits, cache.misses, cache.nbytes) == (0, 0, 0)


def test_what_one_caller_writes_into_its_tensors_no_other_sees(encoder):
    encode = TextCache(1000).wrap(encoder.encode_prompt)
    expected = encode("apple")[0][0].clone()
    for _ in range(3):
        (tensor, *_), *_ = encode("apple")
        assert torch.equal(tensor, expected)
        tensor.fill_(7)
    assert len(encoder.calls) == 1


def test_what_was_encoded_under_another_autocast_is_encoded_again(encoder):
    encode = TextCache(1000).wrap(encoder.encode_prompt)
    encode("apple")
    with torch.autocast("cpu", torch.bfloat16):
        encode("apple")
        encode("apple")
    encode("apple")
    assert len(encoder.calls) == 2


def test_what_was_used_longest_ago_goes_when_the_budget_is_full(encoder):
    cache = TextCache(100)  # two results of 40 bytes
    encode = cache.wrap(encoder.encode_prompt)
    for prompt in ("a", "b", "a", "c", "a", "b"):
        encode(prompt)
        assert cache.nbytes <= 100
    assert [prompt for prompt, _ in encoder.calls] == ["a", "b", "c", "b"]


@pytest.mark.parametrize("budget", [0, 39])
def test_what_is_larger_than_the_budget_is_not_kept(encoder, budget):
    cache = TextCache(budget)
    for _ in range(2):
        cache.wrap(encoder.encode_prompt)("apple")
    assert len(encoder.calls) == 2
    assert cache.nbytes == 0


def test_of_a_part_of_a_larger_tensor_that_part_alone_is_kept():
    class Slicing:
        def encode_prompt(self, prompt: str) -> torch.Tensor:
            return torch.zeros(100)[:2]

    cache = TextCache(1000)
    cache.wrap(Slicing().encode_prompt)("apple")
    assert cache.nbytes == 8


def test_a_pipeline_gives_the_same_bits_and_encodes_a_prompt_once(make_flux):
    """With the same text as prompt and negative prompt."""
    calls = []
    pipe = make_flux()
    pipe.text_encoder_2.register_forward_hook(lambda *_: calls.append(None))
    arguments = {
        "prompt": "a cat",
        "negative_prompt": "a cat",
        "true_cfg_scale": 2.0,
        "num_inference_steps": 6,
        "height": 32,
        "width": 32,
        "output_type": "latent",
    }

    def latents(host: PipelineHost, seed: int) -> torch.Tensor:
        cached = host.pipeline_for(CacheConfig(interval=3))
        result = cached(**arguments, generator=torch.Generator().manual_seed(seed)).images
        assert cached.transformer.session.engine_calls == 2 * len(cached.transformer.session.full_steps)
        return result

    without = PipelineHost(pipe)
    expected = [latents(without, seed) for seed in range(4)]
    before = len(calls)
    host = PipelineHost(pipe, text_cache_bytes=2**20)
    first = latents(host, 0)
    assert len(calls) == before + 1, "both branches have the same text"
    with ThreadPoolExecutor(3) as pool:
        others = list(pool.map(lambda seed: latents(host, seed), range(1, 4)))
    assert len(calls) == before + 1
    for one, other in zip(expected, [first, *others], strict=True):
        assert torch.equal(one, other)
