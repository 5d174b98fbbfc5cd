"""Trains the embedded model's transformer and text encoders by flow matching, and exports the pipeline.

Letters: B batch, I image tokens (64), T text tokens (16), C channels of a token (32).
"""

from __future__ import annotations

import argparse
import copy
import math
import shutil
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from training.autoencoder import LATENT_CHANNELS, encode, load_autoencoder
from training.checkpoints import Checkpoint, restore_run, run_tensors, write_checkpoint
from training.data import held_out_cells, load, load_keywords, load_prompts, trained_concepts, training_prompts
from training.pieces import (
    SAVE_MINUTES,
    Piece,
    Progress,
    Settings,
    add_options,
    append_record,
    autocast,
    check_unfinished,
    checkpoint_to_resume,
)
from training.sheets import contact_sheet, generate, sheet_prompts
from training.synonyms import other_prompts, unambiguous_keywords
from training.text import (
    CLIP_LENGTH,
    CLIP_WIDTH,
    MAX_SEQUENCE_LENGTH,
    T5_WIDTH,
    make_text_encoders,
    make_tokenizers,
    tokenize,
)

LATENT_SIZE = 16
SHIFT = 3.0  # of the noise schedule, in training and in the scheduler
DROP_PROMPT = 0.1
GUIDANCE = (1.0, 5.0)
BATCH = {"cpu": 64, "cuda": 1024}
SYNONYMS_SHARE = 0.3
SHEET_STEPS, SHEET_GUIDANCE = 8, 3.0
_COMPILE_MINUTES = 15.0  # a piece on a CPU that is shorter does not win back what compiling costs


@dataclass
class Model:
    """What is trained, and the tokenizers and the autoencoder that it is trained with."""

    transformer: FluxTransformer2DModel
    text_encoder: CLIPTextModel
    text_encoder_2: T5EncoderModel
    tokenizer: CLIPTokenizer
    tokenizer_2: T5TokenizerFast
    vae: AutoencoderTiny

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

    def pipeline(self) -> FluxPipeline:
        """The pipeline of these very modules, where they are."""
        return FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            text_encoder_2=self.text_encoder_2,
            tokenizer_2=self.tokenizer_2,
            transformer=self.transformer,
        )


def make_model(tokenizers: tuple[CLIPTokenizer, T5TokenizerFast], vae: AutoencoderTiny) -> Model:
    """The untrained model: 2 double and 8 single blocks, 192 wide, 7.4 M parameters in the transformer."""
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
    return Model(transformer, *make_text_encoders(*tokenizers), *tokenizers, vae)


def model_of_pipeline(folder: Path) -> Model:
    """The model of a pipeline folder that `export` wrote, in float32."""
    pipe = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
    return Model(
        pipe.transformer, pipe.text_encoder, pipe.text_encoder_2, pipe.tokenizer, pipe.tokenizer_2, pipe.vae.eval()
    )


def export(model: Model, folder: Path) -> None:
    """Saves the model as a FluxPipeline folder in float16, replacing it as a whole; a README.md in it stays."""
    copied = copy.deepcopy(model)
    nn.ModuleList([*copied.modules.values(), copied.vae]).to("cpu", torch.float16)
    for tokenizer in (copied.tokenizer, copied.tokenizer_2):  # what a call asked for last is not the tokenizer's own
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    scratch, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    copied.pipeline().save_pretrained(scratch)
    if folder.exists():
        if (folder / "README.md").exists():
            shutil.copy(folder / "README.md", scratch)
        folder.rename(old)
    scratch.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@torch.no_grad()
def standard_latents(prompts: Sequence[str], vae: AutoencoderTiny, data: Path, device: torch.device) -> torch.Tensor:
    """The latents (N, 8, 16, 16) of the prepared pictures of these prompts, shifted and scaled as pipelines do it."""
    known, pictures = load(data)
    index = {prompt: i for i, prompt in enumerate(known)}
    chosen = torch.from_numpy(pictures[[index[prompt] for prompt in prompts]]).permute(0, 3, 1, 2)
    return (encode(vae, chosen.to(device)) - vae.config.shift_factor) * vae.config.scaling_factor


def packed_latents(prompts: Sequence[str], vae: AutoencoderTiny, data: Path, device: torch.device) -> torch.Tensor:
    """The tokens (N, I, C) of the prepared pictures of these prompts, as FluxPipeline packs and scales latents."""
    latents = standard_latents(prompts, vae, data, device)
    return FluxPipeline._pack_latents(latents, len(prompts), LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)


def fitting(texts: Iterable[str], clip: CLIPTokenizer, t5: T5TokenizerFast) -> set[str]:
    """The texts that no tokenizer cuts, which would lose their end, and in which nothing is unknown."""
    each = list(dict.fromkeys(texts))
    return {
        text
        for text, clip_ids, t5_ids in zip(each, clip(each).input_ids, t5(each).input_ids, strict=True)
        if len(clip_ids) <= CLIP_LENGTH and len(t5_ids) <= MAX_SEQUENCE_LENGTH and t5.unk_token_id not in t5_ids
    }


@dataclass(frozen=True)
class Cells:
    """What is trained: the tokens of each cell's picture, and the token ids of the texts that ask for it.

    The texts of cell i are the rows from `first[i]` on, `count[i]` of them, its prompt before its other texts; the last
    row is the empty prompt.
    """

    latents: torch.Tensor  # (N, I, C)
    clip_ids: torch.Tensor  # (texts, CLIP_LENGTH)
    t5_ids: torch.Tensor  # (texts, T)
    first: torch.Tensor  # (N,)
    count: torch.Tensor  # (N,)

    @classmethod
    def of(cls, model: Model, texts: dict[str, list[str]], data: Path, device: torch.device) -> Cells:
        """The cells of these prompts, with the other texts of each; everything is on the device.

        A prompt that the tokenizers cut is left out, and any such other text.
        """
        tokenizers = model.tokenizer, model.tokenizer_2
        whole = fitting(chain(texts, *texts.values()), *tokenizers)
        rows = {
            prompt: [prompt, *(each for each in others if each in whole)]
            for prompt, others in texts.items()
            if prompt in whole
        }
        if cut := texts.keys() - rows.keys():
            print(f"left out, longer than the tokenizers take or unknown to them: {'; '.join(sorted(cut))}", flush=True)
        count = torch.tensor([len(each) for each in rows.values()], device=device)
        clip_ids, t5_ids = (ids.to(device) for ids in tokenize([*chain(*rows.values()), ""], *tokenizers))
        latents = packed_latents(list(rows), model.vae, data, device)
        return cls(latents, clip_ids, t5_ids, count.cumsum(0) - count, count)

    def sample(self, batch: int, other_share: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, I, C) of random cells and a text row (B,) for each, so large a share of them not its prompt."""
        device = self.latents.device
        rows = torch.randint(len(self.latents), (batch,), device=device)
        texts, others = self.first[rows], self.count[rows] - 1
        if other_share > 0:
            which = 1 + (torch.rand(batch, device=device) * others).long()  # rand < 1, so which <= others
            texts = texts + torch.where((torch.rand(batch, device=device) < other_share) & (others > 0), which, 0)
        return self.latents[rows], texts


@dataclass(frozen=True, kw_only=True)
class TransformerSettings(Settings):
    """What a run of the transformer is trained with."""

    learning_rate: float = 1e-3
    guided_share: float = 0.2
    synonyms: float = 0.0
    pipeline: str | None = None  # that it began with


class Trainer:
    """One training run: model, averaged model, optimizer and data."""

    def __init__(self, model: Model, cells: Cells, settings: TransformerSettings, device: torch.device) -> None:
        self.settings = settings
        self.device = device
        self.progress = Progress()
        self.cells = cells
        self.empty = len(cells.clip_ids) - 1  # the row of the empty prompt
        self.model = model
        self.modules = model.modules.to(device).train()
        self.average = copy.deepcopy(model)
        self.average_modules = self.average.modules.eval().requires_grad_(False)
        self._saved_modules = {"modules": self.modules, "average": self.average_modules}
        self.optimizer = torch.optim.AdamW(self.modules.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99))

    def compile(self) -> None:
        """Compiles the blocks; it costs one or two minutes and saves a sixth of each step on two cores."""
        for block in (*self.model.transformer.transformer_blocks, *self.model.transformer.single_transformer_blocks):
            block.compile()

    def guided(self, done: float) -> bool:
        """Whether guidance is trained at this share of the plan."""
        return done > 1 - self.settings.guided_share

    def learning_rate(self, done: float) -> float:
        """The learning rate of the next step, at this share of the plan: half a cosine after a warm-up."""
        return self.settings.learning_rate * self.progress.warm_up * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def step(self, done: float) -> torch.Tensor:
        """One optimizer step at this share of the plan; returns the loss, not yet read, so that no step waits."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(done)
        batch = self.settings.batch
        clean, texts = self.cells.sample(batch, self.settings.synonyms)  # (B, I, C), (B,)
        uniform = torch.rand(batch, device=self.device)
        sigma = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
        noise = torch.randn_like(clean)
        noisy = torch.lerp(clean, noise, sigma[:, None, None])
        target = noise - clean
        dropped = torch.rand(batch, device=self.device) < DROP_PROMPT
        shown = torch.where(dropped, self.empty, texts)
        guidance = torch.ones(batch, device=self.device)
        if self.guided(done):
            low, high = GUIDANCE
            guidance = torch.where(dropped, 1.0, torch.empty_like(sigma).uniform_(low, high))
            target = target + (guidance - 1)[:, None, None] * self._guidance_direction(noisy, sigma, texts)
        with autocast(self.device), self._attention():
            output = self.model.velocity(noisy, sigma, guidance, self.cells.clip_ids[shown], self.cells.t5_ids[shown])
            loss = (output.float() - target).square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        self.progress.steps += 1
        self._update_average()
        return loss.detach()

    def save(self, folder: Path) -> None:
        """Writes the checkpoint."""
        tensors = run_tensors(self._saved_modules, self.optimizer, self.device)
        values = {"progress": asdict(self.progress), "settings": self.settings.saved()}
        write_checkpoint(folder, self.progress.steps, Checkpoint(tensors, values))

    def resume(self, saved: Checkpoint) -> None:
        """Goes on from a checkpoint."""
        restore_run(saved.tensors, self._saved_modules, self.optimizer, self.device)
        self.progress = Progress(**saved.values["progress"])

    def _attention(self) -> AbstractContextManager[None]:
        # At 80 tokens the plain attention is faster than torch's fused one, whose backward pass is slow on CPUs.
        return sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext()

    @torch.no_grad()
    def _guidance_direction(self, noisy: torch.Tensor, sigma: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """v(prompt) - v(empty prompt) of the averaged model without guidance: (B, I, C)."""
        both = torch.cat([texts, torch.full_like(texts, self.empty)])
        with autocast(self.device):
            output = self.average.velocity(
                noisy.repeat(2, 1, 1),
                sigma.repeat(2),
                torch.ones(len(both), device=self.device),
                self.cells.clip_ids[both],
                self.cells.t5_ids[both],
            )
        conditional, unconditional = output.float().chunk(2)
        return conditional - unconditional

    @torch.no_grad()
    def _update_average(self) -> None:
        # A pipeline's weights are an average already; the first steps of others are soon forgotten.
        ramp = self.progress.steps / (self.progress.steps + 10) if self.settings.pipeline is None else 1.0
        decay = min(0.998, ramp)
        averages: list[torch.Tensor] = list(self.average_modules.parameters())
        currents: list[torch.Tensor] = list(self.modules.parameters())
        torch._foreach_lerp_(averages, currents, 1 - decay)


def begin(chosen: argparse.Namespace, settings: TransformerSettings, folder: Path, resumed: bool) -> Trainer:
    """The trainer of a run, at its first step."""
    device = torch.device(chosen.device)
    concepts = trained_concepts(settings.concepts, chosen.data)
    keywords = unambiguous_keywords(load_keywords(chosen.data), concepts) if settings.synonyms else {}
    texts = {
        prompt: other_prompts(prompt, keywords) if settings.synonyms else [] for prompt in training_prompts(concepts)
    }
    if resumed:
        tokenizers = tuple(AutoTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2"))
        model = make_model(tokenizers, AutoencoderTiny.from_pretrained(folder / "vae"))
    else:
        model = _first_model(
            chosen.checkpoints, settings.pipeline, [*load_prompts(chosen.data), *chain(*texts.values())], folder
        )
    model.vae.to(device).eval().requires_grad_(False)
    return Trainer(model, Cells.of(model, texts, chosen.data, device), settings, device)


def _first_model(checkpoints: Path, pipeline: str | None, texts: list[str], folder: Path) -> Model:
    """Leaves tokenizers and autoencoder in the folder, so that the later pieces need nothing else."""
    for left in ("tokenizer", "tokenizer_2", "vae"):  # by a run that ended before its first checkpoint
        shutil.rmtree(folder / left, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    if pipeline is None:
        model = make_model(make_tokenizers(texts, folder), load_autoencoder(checkpoints))
    else:
        model = model_of_pipeline(Path(pipeline))
        model.tokenizer.save_pretrained(folder / "tokenizer")
        model.tokenizer_2.save_pretrained(folder / "tokenizer_2")
    model.vae.save_pretrained(folder / "vae")
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains for a time budget, the guidance in the last part of the plan, and exports the averaged weights."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    add_options(parser, minutes=25.0)
    parser.add_argument("--learning-rate", type=float, help="at its highest [0.001]; remembered")
    parser.add_argument("--guided-share", type=float, help="last part that trains guidance [0.2]; remembered")
    parser.add_argument(
        "--synonyms",
        type=float,
        nargs="?",
        const=SYNONYMS_SHARE,
        help="so large a share of the prompts in other words [0; 0.3 without a number]; remembered",
    )
    parser.add_argument(
        "--from", dest="pipeline", metavar="FOLDER", help="begin with the weights of this pipeline folder"
    )
    parser.add_argument("--export", type=Path, help="the pipeline's folder [pipeline, with the checkpoints]")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="[on a GPU, or for 15 minutes]")
    parser.add_argument("--log-every", type=int, default=50, help="steps")
    parser.add_argument("--sheet-every", type=int, default=1000, help="steps between contact sheets")
    chosen = parser.parse_args(arguments)
    folder = chosen.checkpoints / "transformer"
    saved = checkpoint_to_resume(folder, chosen.resume)
    if saved is None and chosen.batch is None:
        chosen.batch = BATCH[chosen.device]
    settings = TransformerSettings.of(chosen, saved.values["settings"] if saved else None)
    torch.manual_seed(chosen.seed)
    trainer = begin(chosen, settings, folder, resumed=saved is not None)
    if saved is not None:
        trainer.resume(saved)
    check_unfinished(settings.plan, trainer.progress)
    if chosen.compile or (chosen.compile is None and (chosen.device != "cpu" or chosen.minutes >= _COMPILE_MINUTES)):
        trainer.compile()
    train(trainer, chosen, folder)
    trainer.save(folder)
    export(trainer.average, chosen.export or chosen.checkpoints / "pipeline")


def train(trainer: Trainer, chosen: argparse.Namespace, folder: Path) -> None:
    """Trains for a piece, with a log, checkpoints and contact sheets."""
    losses: list[torch.Tensor] = []
    saved_minutes = trainer.progress.minutes
    for done in Piece(chosen.minutes, chosen.steps).shares(trainer.settings.plan, trainer.progress):
        losses.append(trainer.step(done))
        if trainer.progress.steps % chosen.log_every == 0:
            append_record(chosen.checkpoints / "log.jsonl", _record(trainer, done, losses))
            losses = []
        if trainer.progress.steps % chosen.sheet_every == 0:
            write_sheet(trainer, done, chosen.data, folder / "sheets")
        if trainer.progress.minutes - saved_minutes > SAVE_MINUTES:
            trainer.save(folder)
            saved_minutes = trainer.progress.minutes


def write_sheet(trainer: Trainer, done: float, data: Path, folder: Path) -> Path:
    """Pictures of 16 fixed prompts by the averaged model, the last four held out."""
    concepts = trained_concepts(trainer.settings.concepts, data)
    prompts = sheet_prompts(training_prompts(concepts), sorted(held_out_cells(concepts)))
    guidance = SHEET_GUIDANCE if trainer.guided(done) else 1.0  # others are not trained yet
    pictures = generate(trainer.average.pipeline(), prompts, SHEET_STEPS, guidance, seed=0, batch=len(prompts))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{trainer.progress.steps:08d}.png"
    contact_sheet(pictures, prompts, columns=4).save(path)
    return path


def _record(trainer: Trainer, done: float, losses: Sequence[torch.Tensor]) -> dict[str, object]:
    return {
        "stage": "transformer",
        "step": trainer.progress.steps,
        "minutes": round(trainer.progress.minutes, 2),
        "loss": round(float(torch.stack([*losses]).mean()), 4),
        "learning_rate": float(f"{trainer.optimizer.param_groups[0]['lr']:.3g}"),
        "guided": trainer.guided(done),
    }


if __name__ == "__main__":
    main()
