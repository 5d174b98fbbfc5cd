"""Tiny random pipelines, shaped like the real ones: more than one block of each kind, real tokenizers, no hub."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

WORDS = "a red green blue apple cat dog house tree of the sun on under three two and big small ugly"
MAX_SEQUENCE_LENGTH = 16


def tiny_flux(
    folder: Path, *, guidance_embeds: bool = True, dtype: torch.dtype = torch.float32, dynamic_shift: bool = True
) -> FluxPipeline:
    """A FluxPipeline of random weights: 2 double and 3 single blocks, 8x autoencoder, 4 latent channels.

    Args:
        folder: an empty folder for the tokenizers' files.
        guidance_embeds: True for the shape of FLUX.1-dev, False for that of FLUX.1-schnell.
        dtype: of all weights.
        dynamic_shift: the scheduler's shift depends on the size, as FLUX.1-dev's does.
    """
    torch.manual_seed(0)
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic_shift),
        vae=AutoencoderKL(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
            use_quant_conv=False,
            use_post_quant_conv=False,
            shift_factor=0.1,
            scaling_factor=0.4,
        ),
        text_encoder=_clip_text_model(),
        tokenizer=_clip_tokenizer(folder),
        text_encoder_2=T5EncoderModel(
            T5Config(
                vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
            )
        ),
        tokenizer_2=_t5_tokenizer(folder),
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 4, 8),
        ),
    )
    for name in ("vae", "text_encoder", "text_encoder_2", "transformer"):
        getattr(pipe, name).to(dtype).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _clip_text_model() -> CLIPTextModel:
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


def _clip_tokenizer(folder: Path) -> CLIPTokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator([WORDS], trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    vocab = trained["vocab"]
    for word in list(vocab):  # CLIP marks word ends; each byte needs its marked form too
        if not word.endswith("</w>") and not word.startswith("<|"):
            vocab.setdefault(f"{word}</w>", len(vocab))
    merges = [tuple(merge) for merge in trained["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def _t5_tokenizer(folder: Path) -> T5TokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    path = folder / "t5.json"
    tokenizer.save(str(path))
    return T5TokenizerFast(tokenizer_file=str(path), extra_ids=0, model_max_length=512)
