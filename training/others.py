"""Trains tiny models of two other families on the emoji, which benchmarks measure beside the embedded FLUX.

`dit` is a DiT of class labels (noise prediction, DDIM), `sd3` a Stable Diffusion 3 (flow matching, three text
encoders). Both have classifier-free guidance of two branches. They use the shipped autoencoder and text encoders,
are made in ten minutes on one core, and are not shipped.

Letters: B batch, N cells, C latent channels (8), H and W latent size (16), T text tokens (32).
"""

from __future__ import annotations

import argparse
import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from training.autoencoder import LATENT_CHANNELS
from training.data import CACHE, DATA, PIPELINE, STYLES, cell_of, trained_concepts, training_prompts
from training.pieces import Piece, Plan, Progress, append_record, autocast
from training.sheets import Pixels, contact_sheet, generate
from training.text import CLIP_WIDTH, MAX_SEQUENCE_LENGTH, T5_WIDTH
from training.transformer import DROP_PROMPT, LATENT_SIZE, SHIFT, model_of_pipeline, standard_latents

LEARNING_RATE = 2e-3  # at its highest
BATCH = 16
NO_LABEL = 1000  # DiTPipeline's own number for "no class"
CLIP_TOKENS = 16  # of each of Stable Diffusion 3's two CLIPs
SHEET_STEPS, SHEET_CELLS = 50, 20
_LOG_EVERY = 50  # steps
_DAY_MINUTES = 24 * 60.0


class Trainee(ABC):
    """A pipeline whose transformer is trained, and the cells that it learns.

    Attributes:
        pipe: the whole pipeline, in float32.
        prompts: the N cells.
        latents: their pictures (N, C, H, W), as the transformer works on them.
        sheet_guidance: the guidance scale of the contact sheet.
    """

    pipe: DiffusionPipeline
    prompts: list[str]
    latents: torch.Tensor
    sheet_guidance: float

    @abstractmethod
    def loss(self, rows: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
        """The mean square error at a random noise level of each cell.

        Args:
            rows: (B,) int64, the cells.
            dropped: (B,) bool, which of them the transformer must predict without label or prompt.
        """

    @abstractmethod
    def pictures(self, prompts: Sequence[str], steps: int, guidance_scale: float, seed: int) -> Pixels:
        """Pictures (N, 64, 64, 3) uint8 of the prompts by the pipeline, the i-th from the seed `seed + i`."""


class DiT(Trainee):
    """A DiTPipeline: each cell is a class, numbered in the order of the prompts; 7.6 M parameters.

    DiTPipeline ignores the autoencoder's shift, so here the latents are not shifted, and the saved autoencoder says so.
    """

    sheet_guidance = 3.0

    def __init__(self, prompts: list[str], data: Path) -> None:
        vae = AutoencoderTiny.from_pretrained(PIPELINE / "vae", dtype=torch.float32).eval()
        vae.register_to_config(shift_factor=0.0)
        transformer = DiTTransformer2DModel(
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            sample_size=LATENT_SIZE,
            num_layers=8,
            num_attention_heads=4,
            attention_head_dim=48,
            attention_bias=True,
            num_embeds_ada_norm=NO_LABEL,
        )
        self.prompts = prompts
        self.latents = standard_latents(prompts, vae, data, torch.device("cpu"))
        names = {number: label_of(prompt) for number, prompt in enumerate(prompts)}
        self.pipe = DiTPipeline(transformer, vae, DDIMScheduler(clip_sample=False), id2label=names)
        self.pipe.register_to_config(id2label=names)  # the constructor does not keep them

    def loss(self, rows: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
        clean = self.latents[rows]  # (B, C, H, W)
        noise = torch.randn_like(clean)
        timestep = torch.randint(self.pipe.scheduler.config.num_train_timesteps, rows.shape)  # (B,)
        noisy = self.pipe.scheduler.add_noise(clean, noise, timestep)
        labels = torch.where(dropped, NO_LABEL, rows)
        output = self.pipe.transformer(noisy, timestep=timestep, class_labels=labels, return_dict=False)[0]
        return (output.float() - noise).square().mean()

    def pictures(self, prompts: Sequence[str], steps: int, guidance_scale: float, seed: int) -> Pixels:
        output = self.pipe(
            class_labels=self.pipe.get_label_ids([label_of(prompt) for prompt in prompts]),
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(seed + i) for i in range(len(prompts))],
            output_type="np",
        )
        return (output.images * 255).round().astype(np.uint8)


class StableDiffusion3(Trainee):
    """A StableDiffusion3Pipeline with the shipped T5 encoder and, twice, the shipped CLIP; 7.3 M parameters.

    The text encoders are not trained, so every prompt is encoded once.
    """

    sheet_guidance = 3.0

    def __init__(self, prompts: list[str], data: Path) -> None:
        shipped = model_of_pipeline(PIPELINE)
        shipped.tokenizer.model_max_length = CLIP_TOKENS
        transformer = SD3Transformer2DModel(
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            sample_size=LATENT_SIZE,
            pos_embed_max_size=LATENT_SIZE,
            num_layers=8,
            num_attention_heads=4,
            attention_head_dim=40,
            caption_projection_dim=160,
            joint_attention_dim=T5_WIDTH,
            pooled_projection_dim=2 * CLIP_WIDTH,
            qk_norm="rms_norm",
        )
        self.prompts = prompts
        self.latents = standard_latents(prompts, shipped.vae, data, torch.device("cpu"))
        self.pipe = StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
            vae=shipped.vae,
            text_encoder=projected(shipped.text_encoder),
            tokenizer=shipped.tokenizer,
            text_encoder_2=projected(shipped.text_encoder),
            tokenizer_2=copy.deepcopy(shipped.tokenizer),
            text_encoder_3=shipped.text_encoder_2,
            tokenizer_3=shipped.tokenizer_2,
        )
        self._text, self._pooled = self._encoded([*prompts, ""])  # (N + 1, T, T5_WIDTH), (N + 1, 2 * CLIP_WIDTH)

    def loss(self, rows: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
        clean = self.latents[rows]  # (B, C, H, W)
        noise = torch.randn_like(clean)
        uniform = torch.rand(rows.shape)
        sigma = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)  # (B,)
        texts = torch.where(dropped, len(self.prompts), rows)
        output = self.pipe.transformer(
            hidden_states=torch.lerp(clean, noise, sigma[:, None, None, None]),
            timestep=sigma * self.pipe.scheduler.config.num_train_timesteps,
            encoder_hidden_states=self._text[texts],
            pooled_projections=self._pooled[texts],
            return_dict=False,
        )[0]
        return (output.float() - (noise - clean)).square().mean()

    def pictures(self, prompts: Sequence[str], steps: int, guidance_scale: float, seed: int) -> Pixels:
        return generate(self.pipe, prompts, steps, guidance_scale, seed, batch=len(prompts))

    @torch.no_grad()
    def _encoded(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        text, _, pooled, _ = self.pipe.encode_prompt(
            texts, texts, texts, do_classifier_free_guidance=False, max_sequence_length=MAX_SEQUENCE_LENGTH
        )
        return text, pooled


FAMILIES: dict[str, type[DiT] | type[StableDiffusion3]] = {"dit": DiT, "sd3": StableDiffusion3}


def label_of(prompt: str) -> str:
    """The name of a cell's class, "red apple 3d": DiTPipeline takes a comma for the end of a name."""
    return " ".join(cell_of(prompt))


def projected(encoder: CLIPTextModel) -> CLIPTextModelWithProjection:
    """The encoder with the identity as its projection: the pooled text stays what it is."""
    config = copy.deepcopy(encoder.config)
    config.projection_dim = config.hidden_size
    result = CLIPTextModelWithProjection(config).eval()
    result.text_model.load_state_dict(encoder.state_dict())
    nn.init.eye_(result.text_projection.weight)
    return result


def chosen_prompts(styles: Sequence[str], every: int, concepts: Sequence[str]) -> list[str]:
    """The cells to learn: of these styles, every n-th concept, without those that are held out."""
    kept = set(concepts[::every])
    cells = [(prompt, *cell_of(prompt)) for prompt in training_prompts(concepts)]
    return [prompt for prompt, concept, style in cells if concept in kept and style in styles]


def zero_modulation(transformer: nn.Module) -> None:
    """Sets every block's modulation and the last layers to zero, so that each block begins as the identity.

    It is how DiT is initialised (adaLN-Zero, Peebles and Xie 2023), which diffusers leaves to the training. In runs
    of a minute it lowers the error of the DiT here two- to fourfold.
    """
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and (name.endswith(".linear") or name.startswith("proj_out")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def train(trainee: Trainee, plan: Plan, batch: int, log: Path) -> None:
    """Trains the pipeline's transformer, which ends with the moving average of its weights.

    Args:
        plan: how long.
        batch: pictures of a step.
        log: a file that gets the mean loss of each 50 steps.
    """
    # Not in training mode: each block of a DiT would drop labels of its own choice.
    transformer = trainee.pipe.transformer.eval()
    zero_modulation(transformer)
    average = copy.deepcopy(transformer).requires_grad_(False)
    optimizer = torch.optim.AdamW(transformer.parameters(), betas=(0.9, 0.99), fused=True)
    progress, losses = Progress(), []
    for done in Piece(plan.minutes or _DAY_MINUTES, plan.steps).shares(plan, progress):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * progress.warm_up * 0.5 * (1 + math.cos(math.pi * done))
        rows = torch.randint(len(trainee.prompts), (batch,))
        with autocast(torch.device("cpu")), sdpa_kernel(SDPBackend.MATH):
            loss = trainee.loss(rows, torch.rand(batch) < DROP_PROMPT)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        progress.steps += 1
        decay = min(0.995, progress.steps / (progress.steps + 10))
        with torch.no_grad():
            torch._foreach_lerp_([*average.parameters()], [*transformer.parameters()], 1 - decay)
        losses.append(float(loss.detach()))
        if progress.steps % _LOG_EVERY == 0:
            mean = round(sum(losses[-_LOG_EVERY:]) / _LOG_EVERY, 4)
            append_record(log, {"step": progress.steps, "minutes": round(progress.minutes, 2), "loss": mean})
    transformer.load_state_dict(average.state_dict())


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains a tiny model of another family, and saves its pipeline, a log and a contact sheet beside it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("family", choices=FAMILIES)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=10.0, help="how long it trains [10]")
    length.add_argument("--steps", type=int, help="how many steps instead: the same bits on the same CPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=BATCH, help="pictures of a step")
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=["3d", "noto"])
    parser.add_argument("--every", type=int, default=2, help="only every n-th concept")
    parser.add_argument("--concepts", help="a file with one on each line, or all [training/concepts.txt]")
    parser.add_argument("--data", type=Path, default=DATA, help="what training.data has prepared")
    parser.add_argument("--export", type=Path, help="the pipeline's folder [training/cache/FAMILY]")
    chosen = parser.parse_args(arguments)
    folder: Path = chosen.export or CACHE / chosen.family
    log = folder.with_suffix(".jsonl")
    log.unlink(missing_ok=True)
    torch.manual_seed(chosen.seed)
    prompts = chosen_prompts(chosen.styles, chosen.every, trained_concepts(chosen.concepts, chosen.data))
    trainee = FAMILIES[chosen.family](prompts, chosen.data)
    plan = Plan(steps=chosen.steps) if chosen.steps else Plan(minutes=chosen.minutes)
    train(trainee, plan, chosen.batch, log)
    trainee.pipe.save_pretrained(folder)
    shown = [prompts[round(i)] for i in np.linspace(0, len(prompts) - 1, min(SHEET_CELLS, len(prompts)))]
    trainee.pipe.set_progress_bar_config(disable=True)
    pictures = trainee.pictures(shown, SHEET_STEPS, trainee.sheet_guidance, seed=0)
    contact_sheet(pictures, shown, columns=5).save(folder.with_suffix(".png"))


if __name__ == "__main__":
    main()
