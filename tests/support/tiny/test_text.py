"""What the tiny pipelines have in place of published tokenizers and processors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2VLProcessor

from tests.support.tiny.pictures import picture
from tests.support.tiny.qwen_image import tiny_qwen_image_edit
from tests.support.tiny.text import clip_tokenizer, llama_tokenizer, mistral_tokenizer, qwen_tokenizer, t5_tokenizer


@pytest.mark.parametrize(
    "make",
    [
        lambda _: clip_tokenizer(),
        t5_tokenizer,
        lambda _: llama_tokenizer(),
        lambda _: qwen_tokenizer(),
        lambda _: mistral_tokenizer(),
    ],
    ids=["clip", "t5", "llama", "qwen", "mistral"],
)
def test_a_tokenizer_is_the_same_at_each_call(make: Callable[[Path], Any], tmp_path: Path) -> None:
    """What depends on the order of a hash table differs within a process too: each table has an order of its own."""
    made = {make(tmp_path).backend_tokenizer.to_str() for _ in range(4)}
    assert len(made) == 1


class _Unchecked(Qwen2VLProcessor):
    """Without the part for videos, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> type[Any]:
        return type(argument)


def test_the_processor_of_the_editing_pipeline_makes_what_qwens_own_makes(tmp_path: Path) -> None:
    ours = tiny_qwen_image_edit(tmp_path).processor
    qwens = _Unchecked(image_processor=ours.image_processor, tokenizer=ours.tokenizer)
    for pictures in (1, 2):
        seen = "<|vision_start|><|image_pad|><|vision_end|>" * pictures
        call = {
            "text": [seen + "a red apple"],
            "images": [picture(64, 32, seed) for seed in range(pictures)],
            "padding": True,
            "return_tensors": "pt",
        }
        made, expected = ours(**call), qwens(**call)
        assert made.keys() == expected.keys()
        assert all(torch.equal(made[name], expected[name]) for name in expected)
