"""The embedded model's text side: tokenizers trained on the emoji names, and two tiny encoders."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

MAX_SEQUENCE_LENGTH = 16  # T5 tokens, the pipeline's max_sequence_length
CLIP_LENGTH = 32  # CLIP tokens
CLIP_WIDTH = 64
T5_WIDTH = 128


def make_tokenizers(prompts: list[str], folder: Path) -> tuple[CLIPTokenizer, T5TokenizerFast]:
    """A CLIP tokenizer (BPE over bytes, so that any text goes in) and a T5 tokenizer (Unigram), trained on prompts.

    They are trained once and then read from `folder`: their training gives other ids each time, and a checkpoint goes
    with the ids that it was trained on.

    Args:
        prompts: texts with the words that matter.
        folder: where they are kept.
    """
    clip, t5 = folder / "tokenizer", folder / "tokenizer_2"
    if not (clip.exists() and t5.exists()):
        _clip_tokenizer(prompts).save_pretrained(clip)
        _t5_tokenizer(prompts, folder).save_pretrained(t5)
    return CLIPTokenizer.from_pretrained(clip), T5TokenizerFast.from_pretrained(t5)


def make_text_encoders(clip: CLIPTokenizer, t5: T5TokenizerFast) -> tuple[CLIPTextModel, T5EncoderModel]:
    """The untrained encoders: 2 layers each, 64 and 128 wide."""
    clip_config = CLIPTextConfig(
        vocab_size=len(clip),
        hidden_size=CLIP_WIDTH,
        intermediate_size=2 * CLIP_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=clip.bos_token_id,
        eos_token_id=clip.eos_token_id,
        pad_token_id=clip.pad_token_id,
    )
    t5_config = T5Config(
        vocab_size=len(t5),
        d_model=T5_WIDTH,
        d_kv=32,
        d_ff=2 * T5_WIDTH,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return CLIPTextModel(clip_config), T5EncoderModel(t5_config)


def tokenize(prompts: list[str], clip: CLIPTokenizer, t5: T5TokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids as FluxPipeline makes them: (N, CLIP_LENGTH) and (N, MAX_SEQUENCE_LENGTH) int64."""
    clip_ids = clip(prompts, padding="max_length", max_length=CLIP_LENGTH, truncation=True, return_tensors="pt")
    t5_ids = t5(prompts, padding="max_length", max_length=MAX_SEQUENCE_LENGTH, truncation=True, return_tensors="pt")
    return clip_ids.input_ids, t5_ids.input_ids


def _clip_tokenizer(prompts: list[str]) -> CLIPTokenizer:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    words = [word for prompt in prompts for word in prompt.replace(",", " ,").split()]
    tokenizer.train_from_iterator(words, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    vocab: dict[str, int] = trained["vocab"]
    for token in list(vocab):  # every byte needs its form at the end of a word too
        if not token.endswith("</w>") and not token.startswith("<|"):
            vocab.setdefault(f"{token}</w>", len(vocab))
    merges = [tuple(merge) for merge in trained["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_LENGTH)


def _t5_tokenizer(prompts: list[str], folder: Path) -> T5TokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=1500, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(prompts, trainer)
    path = folder / "t5_tokenizer.json"
    tokenizer.save(str(path))
    return T5TokenizerFast(tokenizer_file=str(path), extra_ids=0, model_max_length=512)
