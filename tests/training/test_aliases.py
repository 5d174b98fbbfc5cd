"""Other words for the trained prompts: what the shipped tokenizers make of them, and that no trained prompt changes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from diffusers import FluxPipeline
from tokenizers import Tokenizer
from transformers import CLIPTokenizer, T5TokenizerFast

from tests.support.paths import REPOSITORY
from training.aliases import apply, normalizer, read_aliases
from training.data import STYLES, prompt_of, trained_concepts

PIPELINE = REPOSITORY / "emoji" / "1" / "pipeline"


@pytest.mark.parametrize(("folder", "plain_class"), [("tokenizer", CLIPTokenizer), ("tokenizer_2", T5TokenizerFast)])
def test_prompts_as_they_were_trained_keep_their_tokens(folder: str, plain_class: type) -> None:
    """These classes read the same file and set the normalizers that training had in its place."""
    prompts = [prompt_of(concept, style) for concept in trained_concepts() for style in STYLES] + [""]
    taught = getattr(FluxPipeline.from_pretrained(PIPELINE), folder)
    assert taught(prompts).input_ids == plain_class.from_pretrained(PIPELINE / folder)(prompts).input_ids


@pytest.mark.parametrize("folder", ["tokenizer", "tokenizer_2"])
@pytest.mark.parametrize(
    ("prompt", "trained"),
    [
        ("Red  Apple, 3D", "red apple, 3d"),
        ("kitty", "cat face, 3d"),
        ("A picture of a kitty in noto style.", "cat face, noto"),
        ("3D pizza", "pizza, 3d"),
        ("the rose as a twemoji", "rose, twemoji"),
        ("Puppies in flat style", "dog face, flat"),
        ("Cars, fluent", "automobile, fluent"),
        ("hot-dog", "hot dog, 3d"),
        ("four-leaf clover, flat", "four leaf clover, flat"),
        # A word that is not the whole concept stands for itself.
        ("dog with a hat, flat", "dog with a hat, flat"),
        ("police cars, flat", "police cars, flat"),
        ("", ""),
    ],
)
def test_what_people_say_becomes_what_was_trained(folder: str, prompt: str, trained: str) -> None:
    made = Tokenizer.from_file(str(PIPELINE / folder / "tokenizer.json")).normalizer
    assert made.normalize_str(prompt) == trained


def test_every_alias_leads_to_its_concept_in_every_style() -> None:
    aliases = read_aliases()
    made = normalizer(aliases)
    assert set(aliases) <= set(trained_concepts())
    for concept, words in aliases.items():
        for word in words:
            for style in STYLES:
                assert made.normalize_str(f"{word}, {style}") == prompt_of(concept, style)


def test_an_alias_has_one_concept_and_is_none_itself() -> None:
    words = [word for listed in read_aliases().values() for word in listed]
    assert len(words) == len(set(words))
    assert not set(words) & set(trained_concepts())


def test_the_shipped_tokenizers_are_those_of_the_list(tmp_path: Path) -> None:
    for folder in ("tokenizer", "tokenizer_2"):
        (tmp_path / folder).mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / folder / name).write_bytes((PIPELINE / folder / name).read_bytes())
    (tmp_path / "model_index.json").write_bytes((PIPELINE / "model_index.json").read_bytes())
    apply(tmp_path, read_aliases())
    for path in tmp_path.rglob("*.json"):
        assert json.loads(path.read_text()) == json.loads((PIPELINE / path.relative_to(tmp_path)).read_text()), path


@pytest.mark.parametrize("text", ["." * 100_000 + "x", "3d " * 30_000, ", 3d" * 30_000, " " * 100_000, "an " * 30_000])
def test_a_prompt_that_is_made_to_be_slow_is_not(text: str) -> None:
    """A pattern that begins anew at each character would take minutes of these, which are longer than any served."""
    began = time.perf_counter()
    Tokenizer.from_file(str(PIPELINE / "tokenizer_2/tokenizer.json")).normalizer.normalize_str(text)
    assert time.perf_counter() - began < 5
