"""Tiny text encoders and tokenizers for the tiny pipelines: random weights, no hub."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

WORDS = "a red green blue apple cat dog house tree of the sun on under three two and big small ugly"


def clip_text_model() -> CLIPTextModel:
    """A CLIP text encoder of 32 features, random weights."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=600,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer trained on `WORDS`, the same in every process."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        # CLIP marks word ends, and each byte needs its marked form. The trainer gives the marked letters that it meets
        # numbers in the order of a hash table, which differs from call to call; those of special tokens are fixed.
        special_tokens=["<|startoftext|>", "<|endoftext|>", *(f"{letter}</w>" for letter in alphabet)],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator([WORDS], trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in trained["merges"]]
    return CLIPTokenizer(vocab=trained["vocab"], merges=merges, model_max_length=77)


def t5_text_model() -> T5EncoderModel:
    """A T5 encoder of 32 features, random weights."""
    config = T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return T5EncoderModel(config)


def t5_tokenizer(folder: Path) -> T5TokenizerFast:
    """A T5 tokenizer of the words and the letters of `WORDS`; its file is left in the folder.

    It is not trained: the trainer's pieces depend on the order of a hash table, which differs from call to call.
    """
    words = dict.fromkeys(f"▁{word}" for word in WORDS.split())
    letters = sorted(set(WORDS) - {" "})
    vocab = [
        *((special, 0.0) for special in ("<pad>", "</s>", "<unk>")),
        *((letter, -4.0) for letter in ("▁", *letters)),
        *((word, -2.0) for word in words),
    ]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    path = folder / "t5.json"
    tokenizer.save(str(path))
    return T5TokenizerFast(tokenizer_file=str(path), extra_ids=0, model_max_length=512)


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 300 words, trained on `WORDS`, as Llama's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|begin_of_text|>", "<|eot_id|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|eot_id|>",
        model_max_length=512,
    )


QWEN_CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
_QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<think>",
    "</think>",
)


def qwen_tokenizer(*texts: str, chat_template: str = QWEN_CHAT) -> Qwen2Tokenizer:
    """A Qwen tokenizer with its special tokens and chat template, and a token for each word of `WORDS` and the texts.

    Args:
        texts: a pipeline's prompt templates, which so have as many tokens as in Qwen's own vocabulary.
        chat_template: of Jinja.
    """
    splitting = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    tokenizer = _trained(splitting, _QWEN_SPECIAL, "system\nuser\nassistant\n\n", *texts)
    model = json.loads(tokenizer.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        eos_token="<|im_end|>",
        additional_special_tokens=list(_QWEN_SPECIAL[1:]),
        image_token="<|image_pad|>",
        model_max_length=2048,
        chat_template=chat_template,
    )


MISTRAL_CHAT = (
    "{{ bos_token }}{% for message in messages %}{% set text = message['content'] | map(attribute='text') | join %}"
    "{% if message['role'] == 'system' %}{{ '[SYSTEM_PROMPT]' + text + '[/SYSTEM_PROMPT]' }}"
    "{% else %}{{ '[INST]' + text + '[/INST]' }}{% endif %}{% endfor %}"
)
_MISTRAL_SPECIAL = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "<pad>",
    "[IMG]",
)


def mistral_tokenizer(*texts: str, chat_template: str = MISTRAL_CHAT) -> PreTrainedTokenizerFast:
    """A tokenizer as Mistral's, with its special tokens and chat, and a token for each word of `WORDS` and the texts.

    Args:
        texts: system messages.
        chat_template: of Jinja.
    """
    tokenizer = _trained(pre_tokenizers.ByteLevel(add_prefix_space=False), _MISTRAL_SPECIAL, *texts)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=list(_MISTRAL_SPECIAL[3:]),
        padding_side="left",
        model_max_length=2048,
        chat_template=chat_template,
    )


def _trained(splitting: pre_tokenizers.PreTokenizer, special: tuple[str, ...], *texts: str) -> Tokenizer:
    """A byte-level tokenizer with these special tokens and a token for each word of `WORDS` and the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitting
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    between = "|".join(re.escape(token) for token in special)
    tokenizer.train_from_iterator([part for text in (WORDS, *texts) for part in re.split(between, text)], trainer)
    return tokenizer
