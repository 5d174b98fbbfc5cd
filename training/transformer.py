"""Trains the embedded model's transformer and text encoders by flow matching, and exports the pipeline.

Letters: B batch, I image tokens (64), T text tokens (16), C channels of a token (32).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from training.autoencoder import LATENT_CHANNELS, LOG, load_autoencoder
from training.data import CACHE, load, training_prompts
from training.text import CLIP_WIDTH, T5_WIDTH, make_text_encoders, make_tokenizers, tokenize

CHECKPOINT = CACHE / "transformer.pt"
PIPELINE = Path(__file__).parent.parent / "model_repository" / "emoji" / "1" / "pipeline"
LATENT_SIZE = 16
SHIFT = 3.0  # of the noise schedule, in training and in the scheduler
DROP_PROMPT = 0.1
GUIDANCE = (1.0, 5.0)


@dataclass
class Model:
    """What is trained, and the tokenizers it is trained with."""

    transformer: FluxTransformer2DModel
    text_encoder: CLIPTextModel
    text_encoder_2: T5EncoderModel
    tokenizer: CLIPTokenizer
    tokenizer_2: T5TokenizerFast

    @property
    def modules(self) -> nn.ModuleDict:
        """The three trained modules by name."""
        return nn.ModuleDict(
            {
                "transformer": self.transformer,
                "text_encoder": self.text_encoder,
                "text_encoder_2": self.text_encoder_2,
            }
        )

    def velocity(
        self,
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        guidance: torch.Tensor,
        clip_ids: torch.Tensor,
        t5_ids: torch.Tensor,
    ) -> torch.Tensor:
        """The predicted velocity (B, I, C) of noisy tokens (B, I, C), called as FluxPipeline calls the transformer."""
        side = LATENT_SIZE // 2
        image_ids = FluxPipeline._prepare_latent_image_ids(len(noisy), side, side, noisy.device, noisy.dtype)
        return self.transformer(
            hidden_states=noisy,
            timestep=sigma,
            guidance=guidance,
            pooled_projections=self.text_encoder(clip_ids).pooler_output,
            encoder_hidden_states=self.text_encoder_2(t5_ids)[0],
            txt_ids=torch.zeros(t5_ids.shape[1], 3, device=noisy.device),
            img_ids=image_ids,
            return_dict=False,
        )[0]


def make_model() -> Model:
    """The untrained model: 2 double and 8 single blocks, 192 wide, 7.4 M parameters in the transformer."""
    prompts, _ = load()
    tokenizers = make_tokenizers(prompts, CACHE)
    transformer = FluxTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=8,
        attention_head_dim=48,
        num_attention_heads=4,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 20, 20),
    )
    return Model(transformer, *make_text_encoders(*tokenizers), *tokenizers)


def export(model: Model, folder: Path = PIPELINE) -> None:
    """Saves model and autoencoder as a FluxPipeline folder in float16, replacing it as a whole."""
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=load_autoencoder(),
        text_encoder=copy.deepcopy(model.text_encoder),
        tokenizer=model.tokenizer,
        text_encoder_2=copy.deepcopy(model.text_encoder_2),
        tokenizer_2=model.tokenizer_2,
        transformer=copy.deepcopy(model.transformer),
    )
    scratch, old = folder.with_name("pipeline.new"), folder.with_name("pipeline.old")
    pipe.to(dtype=torch.float16).save_pretrained(scratch)
    if folder.exists():
        if (folder / "README.md").exists():
            shutil.copy(folder / "README.md", scratch)
        folder.rename(old)
    scratch.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def packed_latents(prompts: list[str]) -> torch.Tensor:
    """The tokens (N, I, C) of the prepared pictures of these prompts, as FluxPipeline packs and scales latents."""
    known, pictures = load()
    index = {prompt: i for i, prompt in enumerate(known)}
    chosen = torch.from_numpy(pictures[[index[prompt] for prompt in prompts]]).permute(0, 3, 1, 2)
    vae = load_autoencoder()
    with torch.no_grad():
        latents = vae.encode(chosen.float() / 127.5 - 1).latents
    latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    return FluxPipeline._pack_latents(latents, len(prompts), LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)


class Trainer:
    """One training run: model, averaged model, optimizer and data."""

    def __init__(self, seed: int, batch: int, learning_rate: float, device: str) -> None:
        torch.manual_seed(seed)
        self.model = make_model()
        self.device = device
        self.modules = self.model.modules.to(device).train()
        self.average = copy.deepcopy(self.model)
        self.average_modules = self.average.modules.to(device).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.modules.parameters(), lr=learning_rate, betas=(0.9, 0.99))
        self.learning_rate = learning_rate
        self.batch = batch
        self.steps = 0
        self.minutes = 0.0
        prompts = training_prompts()
        self.latents = packed_latents(prompts).to(device)
        self.clip_ids, self.t5_ids = (
            ids.to(device) for ids in tokenize([*prompts, ""], self.model.tokenizer, self.model.tokenizer_2)
        )  # the last row is the empty prompt

    def compile(self) -> None:
        """Compiles the blocks; it costs one or two minutes and saves a sixth of each step on two cores."""
        for block in (*self.model.transformer.transformer_blocks, *self.model.transformer.single_transformer_blocks):
            block.compile()

    def step(self, done: float, guided: bool) -> float:
        """One optimizer step; `done` is the share of the time that is spent, `guided` trains the guidance too."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * min(1.0, (self.steps + 1) / 100) * 0.5 * (1 + math.cos(math.pi * done))
        rows = torch.randint(len(self.latents), (self.batch,), device=self.device)
        clean = self.latents[rows]  # (B, I, C)
        uniform = torch.rand(self.batch, device=self.device)
        sigma = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
        noise = torch.randn_like(clean)
        noisy = torch.lerp(clean, noise, sigma[:, None, None])
        target = noise - clean
        dropped = torch.rand(self.batch, device=self.device) < DROP_PROMPT
        shown = torch.where(dropped, len(self.latents), rows)
        guidance = torch.ones(self.batch, device=self.device)
        if guided:
            low, high = GUIDANCE
            guidance = torch.where(dropped, 1.0, torch.empty_like(sigma).uniform_(low, high))
            target = target + (guidance - 1)[:, None, None] * self._guidance_direction(noisy, sigma, rows)
        # At 80 tokens the plain attention is faster than torch's fused one, whose backward pass is slow on CPUs.
        with torch.autocast(self.device, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            output = self.model.velocity(noisy, sigma, guidance, self.clip_ids[shown], self.t5_ids[shown])
            loss = (output.float() - target).square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        self._update_average()
        return loss.item()

    def save(self) -> None:
        """Writes the checkpoint."""
        torch.save(
            {
                "modules": self.modules.state_dict(),
                "average": self.average_modules.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "steps": self.steps,
                "minutes": self.minutes,
            },
            CHECKPOINT,
        )

    def resume(self) -> None:
        """Reads the checkpoint."""
        saved = torch.load(CHECKPOINT, weights_only=True, map_location=self.device)
        self.modules.load_state_dict(saved["modules"])
        self.average_modules.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.steps, self.minutes = saved["steps"], saved["minutes"]

    @torch.no_grad()
    def _guidance_direction(self, noisy: torch.Tensor, sigma: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """v(prompt) - v(empty prompt) of the averaged model without guidance: (B, I, C)."""
        empty = torch.full_like(rows, len(self.latents))
        both = torch.cat([rows, empty])
        with torch.autocast(self.device, torch.bfloat16):
            output = self.average.velocity(
                noisy.repeat(2, 1, 1),
                sigma.repeat(2),
                torch.ones(2 * self.batch, device=self.device),
                self.clip_ids[both],
                self.t5_ids[both],
            )
        conditional, unconditional = output.float().chunk(2)
        return conditional - unconditional

    @torch.no_grad()
    def _update_average(self) -> None:
        self.steps += 1
        decay = min(0.998, self.steps / (self.steps + 10))
        for average, current in zip(self.average_modules.parameters(), self.modules.parameters(), strict=True):
            average.lerp_(current, 1 - decay)


def main() -> None:
    """Trains for a time budget, the guidance in its last part, and exports the averaged weights."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--guided-share", type=float, default=0.2, help="last part of the time that trains guidance")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    trainer = Trainer(arguments.seed, arguments.batch, arguments.learning_rate, arguments.device)
    if arguments.resume:
        trainer.resume()
    if not arguments.no_compile:
        trainer.compile()
    began, saved, losses = time.monotonic(), time.monotonic(), []
    before = trainer.minutes
    with tqdm(total=round(arguments.minutes * 60), unit="s") as bar:
        while (elapsed := (time.monotonic() - began) / 60) < arguments.minutes:
            done = elapsed / arguments.minutes
            losses.append(trainer.step(done, guided=done > 1 - arguments.guided_share))
            trainer.minutes = before + elapsed
            bar.update(round(elapsed * 60) - bar.n)
            if trainer.steps % 50 == 0:
                _log(trainer, losses)
                bar.set_postfix(step=trainer.steps, loss=f"{sum(losses) / len(losses):.4f}")
                losses = []
            if time.monotonic() - saved > 240:
                trainer.save()
                saved = time.monotonic()
    trainer.save()
    export(trainer.average)


def _log(trainer: Trainer, losses: list[float]) -> None:
    record = {
        "stage": "transformer",
        "step": trainer.steps,
        "minutes": round(trainer.minutes, 2),
        "loss": round(sum(losses) / len(losses), 4),
    }
    with LOG.open("a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
