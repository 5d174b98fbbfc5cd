"""Trains the embedded model's autoencoder: 64 px pictures to 16x16 latents of 8 channels and back."""

from __future__ import annotations

import argparse
import copy
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny

from training.checkpoints import (
    Checkpoint,
    last_checkpoint,
    of_prefix,
    read_checkpoint,
    restore_run,
    run_tensors,
    write_checkpoint,
)
from training.data import held_out_cells, load, trained_concepts, training_prompts
from training.pieces import (
    CHECKPOINTS,
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

LATENT_CHANNELS = 8
LEARNING_RATE = 1e-3
BATCH = {"cpu": 32, "cuda": 256}
_CHUNK = 256  # pictures that are encoded at once where nothing is trained


def make_autoencoder() -> AutoencoderTiny:
    """The untrained autoencoder: 4x down, 8 latent channels."""
    width = 48
    return AutoencoderTiny(
        encoder_block_out_channels=(width,) * 3,
        decoder_block_out_channels=(width,) * 3,
        num_encoder_blocks=(0, 2, 3),  # none at full size, where they cost the most
        num_decoder_blocks=(3, 2, 0),
        latent_channels=LATENT_CHANNELS,
    )


def load_autoencoder(checkpoints: Path = CHECKPOINTS) -> AutoencoderTiny:
    """The trained autoencoder, with the latents' mean and spread as shift and scale in its configuration.

    Raises:
        FileNotFoundError: none has been trained there.
    """
    folder = checkpoints / "autoencoder"
    last = last_checkpoint(folder)
    if last is None:
        raise FileNotFoundError(f"{folder} has no checkpoint: train the autoencoder, or begin --from a pipeline")
    saved = read_checkpoint(last)
    model = make_autoencoder()
    model.load_state_dict(of_prefix("average", saved.tensors))
    model.register_to_config(shift_factor=saved.values["shift"], scaling_factor=saved.values["scale"])
    return model.eval()


def picture_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1, and L1 of the differences between neighbouring pixels at three scales, which keeps edges sharp.

    Args:
        output, target: (B, 3, H, W) in [-1, 1].
    """
    loss = F.l1_loss(output, target)
    for _ in range(3):
        for axis in (2, 3):
            loss = loss + F.l1_loss(output.diff(dim=axis), target.diff(dim=axis))
        output, target = F.avg_pool2d(output, 2), F.avg_pool2d(target, 2)
    return loss


def augment(pictures: torch.Tensor) -> torch.Tensor:
    """Flips, and shifts by up to 4 pixels: (B, 3, 64, 64) to the same."""
    if torch.rand(()) < 0.5:
        pictures = pictures.flip(3)
    shift = [int(torch.randint(-4, 5, ())) for _ in range(2)]
    return pictures.roll(shift, dims=(2, 3))


@dataclass(frozen=True)
class Pictures:
    """The prepared pictures (N, 3, 64, 64) uint8, and which of them are trained most, trained too, and held out."""

    pixels: torch.Tensor
    seen: torch.Tensor
    others: torch.Tensor
    held_out: torch.Tensor

    @classmethod
    def load(cls, data: Path, concepts: str | None, device: torch.device) -> Pictures:
        """Everything is on the device, so that no step waits for a copy."""
        prompts, array = load(data)
        chosen = trained_concepts(concepts, data)
        trained, held_out = set(training_prompts(chosen)), held_out_cells(chosen)
        groups: tuple[list[int], list[int], list[int]] = ([], [], [])
        for i, prompt in enumerate(prompts):
            groups[0 if prompt in trained else 2 if prompt in held_out else 1].append(i)
        pixels = torch.from_numpy(array).permute(0, 3, 1, 2).to(device)
        return cls(pixels, *(torch.tensor(group, dtype=torch.long, device=device) for group in groups))

    def batch(self, size: int) -> torch.Tensor:
        """(B, 3, 64, 64) in [-1, 1]: where there are others, three quarters are what the transformer learns."""
        others = size // 4 if len(self.others) else 0
        parts = ((self.seen, size - others), (self.others, others))
        rows = [group[torch.randint(len(group), (n,), device=group.device)] for group, n in parts if n]
        return self.pixels[torch.cat(rows)].float() / 127.5 - 1


class Trainer:
    """One training run: model, averaged model and optimizer."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.settings = settings
        self.device = device
        self.progress = Progress()
        self.model = make_autoencoder().to(device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self._modules = {"model": self.model, "average": self.average}
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4
        )

    def step(self, pictures: torch.Tensor, done: float) -> torch.Tensor:
        """One optimizer step on pictures (B, 3, 64, 64) at this share of the plan; returns the loss, not yet read."""
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * self.progress.warm_up * (1 - done) ** 0.5
        pictures = pictures.to(memory_format=torch.channels_last)
        with autocast(self.device):
            latents = self.model.encode(pictures).latents
            output = self.model.decode(latents + 0.05 * torch.randn_like(latents)).sample
        loss = picture_loss(output.float(), pictures) + 1e-3 * latents.float().square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.progress.steps += 1
        decay = min(0.999, self.progress.steps / (self.progress.steps + 10))
        with torch.no_grad():
            for average, current in zip(self.average.parameters(), self.model.parameters(), strict=True):
                average.lerp_(current, 1 - decay)
        return loss.detach()

    def save(self, folder: Path, pictures: torch.Tensor) -> None:
        """Writes the checkpoint, with what makes the latents of pictures (N, 3, 64, 64) uint8 unit normal."""
        latents = encode(self.average, pictures)
        tensors = run_tensors(self._modules, self.optimizer, self.device)
        values = {
            "progress": asdict(self.progress),
            "settings": self.settings.saved(),
            "shift": float(latents.mean()),
            "scale": 1 / float(latents.std()),
        }
        write_checkpoint(folder, self.progress.steps, Checkpoint(tensors, values))

    def resume(self, saved: Checkpoint) -> None:
        """Goes on from a checkpoint."""
        restore_run(saved.tensors, self._modules, self.optimizer, self.device)
        self.progress = Progress(**saved.values["progress"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains for a time budget and saves the averaged weights; resumes from the last checkpoint."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    add_options(parser, minutes=20.0)
    chosen = parser.parse_args(arguments)
    folder, device = chosen.checkpoints / "autoencoder", torch.device(chosen.device)
    saved = checkpoint_to_resume(folder, chosen.resume)
    if saved is None and chosen.batch is None:
        chosen.batch = BATCH[device.type]
    settings = Settings.of(chosen, saved.values["settings"] if saved else None)
    torch.manual_seed(chosen.seed)
    pictures = Pictures.load(chosen.data, settings.concepts, device)
    trainer = Trainer(settings, device)
    if saved is not None:
        trainer.resume(saved)
    check_unfinished(settings.plan, trainer.progress)

    losses: deque[torch.Tensor] = deque(maxlen=50)
    saved_minutes = trainer.progress.minutes
    for done in Piece(chosen.minutes, chosen.steps).shares(settings.plan, trainer.progress):
        losses.append(trainer.step(augment(pictures.batch(settings.batch)), done))
        if trainer.progress.minutes - saved_minutes > SAVE_MINUTES:
            trainer.save(folder, pictures.pixels[pictures.seen])
            saved_minutes = trainer.progress.minutes
    trainer.save(folder, pictures.pixels[pictures.seen])
    append_record(chosen.checkpoints / "log.jsonl", _record(trainer, pictures, losses))


@torch.no_grad()
def encode(model: AutoencoderTiny, pictures: torch.Tensor) -> torch.Tensor:
    """Latents (N, 8, 16, 16) of pictures (N, 3, 64, 64) uint8, as the model gives them: neither shifted nor scaled."""
    return torch.cat([model.encode(part.float() / 127.5 - 1).latents for part in pictures.split(_CHUNK)])


@torch.no_grad()
def psnr(model: AutoencoderTiny, pictures: torch.Tensor) -> float:
    """Mean PSNR in dB of the pictures (N, 3, 64, 64) uint8 after encoding and decoding."""
    values = []
    for part in pictures.split(_CHUNK):
        target = part.float() / 127.5 - 1
        output = model.decode(model.encode(target).latents).sample.clamp(-1, 1)
        error = (output - target).square().mean(dim=(1, 2, 3)) / 4
        values.append(-10 * error.log10())
    return float(torch.cat(values).mean())


def _record(trainer: Trainer, pictures: Pictures, losses: Iterable[torch.Tensor]) -> dict[str, Any]:
    return {
        "stage": "autoencoder",
        "minutes": round(trainer.progress.minutes, 2),
        "steps": trainer.progress.steps,
        "loss": round(float(torch.stack([*losses]).mean()), 4),
        "psnr_db": {
            name: round(psnr(trainer.average, pictures.pixels[rows]), 2)
            for name, rows in (("seen", pictures.seen), ("held_out", pictures.held_out))
        },
    }


if __name__ == "__main__":
    main()
