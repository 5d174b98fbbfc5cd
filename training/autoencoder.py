"""Trains the embedded model's autoencoder: 64 px pictures to 16x16 latents of 8 channels and back."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from tqdm import tqdm

from training.data import CACHE, held_out_cells, load, training_prompts

CHECKPOINT = CACHE / "autoencoder.pt"
LOG = Path(__file__).parent / "log.jsonl"
LATENT_CHANNELS = 8


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


def load_autoencoder() -> AutoencoderTiny:
    """The trained autoencoder, with the latents' mean and spread as shift and scale in its configuration."""
    model = make_autoencoder()
    saved = torch.load(CHECKPOINT, weights_only=True)
    model.load_state_dict(saved["ema"])
    model.register_to_config(shift_factor=saved["shift"], scaling_factor=saved["scale"])
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


def augment(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Flips, and shifts by up to 4 pixels: (B, 3, 64, 64) to the same."""
    if torch.rand((), generator=generator) < 0.5:
        pictures = pictures.flip(3)
    shift = [int(torch.randint(-4, 5, (), generator=generator)) for _ in range(2)]
    return pictures.roll(shift, dims=(2, 3))


def main() -> None:
    """Trains for a time budget and saves the averaged weights; resumes from the last checkpoint."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)

    prompts, array = load()
    held_out = held_out_cells()
    pictures = torch.from_numpy(array).permute(0, 3, 1, 2)  # (N, 3, 64, 64) uint8
    trained = set(training_prompts())
    # Three quarters of each batch are pictures that the transformer learns; held-out cells are left out here too.
    seen = torch.tensor([i for i, prompt in enumerate(prompts) if prompt in trained])
    others = torch.tensor([i for i, prompt in enumerate(prompts) if prompt not in trained and prompt not in held_out])
    held = torch.tensor([i for i, prompt in enumerate(prompts) if prompt in held_out])

    model = make_autoencoder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    ema = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spent = 0.0
    steps = 0
    if arguments.resume and CHECKPOINT.exists():
        saved = torch.load(CHECKPOINT, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        ema, spent, steps = saved["ema"], saved["minutes"], saved["steps"]

    began = time.monotonic()
    with tqdm(total=round(arguments.minutes * 60), unit="s") as bar:
        while (elapsed := (time.monotonic() - began) / 60) < arguments.minutes:
            done = elapsed / arguments.minutes
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * min(1.0, (steps + 1) / 100) * (1 - done) ** 0.5
            count = {"seen": arguments.batch * 3 // 4, "others": arguments.batch // 4}
            chosen = torch.cat(
                [
                    each[torch.randint(len(each), (number,), generator=generator)]
                    for each, number in zip((seen, others), count.values(), strict=True)
                ]
            )
            batch = augment(pictures[chosen].float() / 127.5 - 1, generator).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                latents = model.encode(batch).latents
                output = model.decode(latents + 0.05 * torch.randn_like(latents)).sample
            loss = picture_loss(output.float(), batch) + 1e-3 * latents.float().square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            steps += 1
            decay = min(0.999, steps / (steps + 10))
            with torch.no_grad():
                for name, tensor in model.state_dict().items():
                    ema[name].lerp_(tensor, 1 - decay)
            bar.update(round(elapsed * 60) - bar.n)
            if steps % 20 == 0:
                bar.set_postfix(step=steps, loss=f"{loss.item():.4f}")
    _save(model, optimizer, ema, pictures, seen, held, spent + arguments.minutes, steps)


def _save(model, optimizer, ema, pictures, seen, held, minutes, steps) -> None:  # type: ignore[no-untyped-def]
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "minutes": minutes, "steps": steps}
    averaged = make_autoencoder().eval()
    averaged.load_state_dict(ema)
    with torch.no_grad():
        latents = averaged.encode(pictures[seen].float() / 127.5 - 1).latents
        scale = 1 / float(latents.std())
        torch.save(state | {"ema": ema, "shift": float(latents.mean()), "scale": scale}, CHECKPOINT)
        scores = {name: psnr(averaged, pictures[chosen]) for name, chosen in (("seen", seen), ("held_out", held))}
    record = {"stage": "autoencoder", "minutes": minutes, "steps": steps, "psnr_db": scores}
    with LOG.open("a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")
    print(record)


def psnr(model: AutoencoderTiny, pictures: torch.Tensor) -> float:
    """Mean PSNR in dB of the pictures (N, 3, 64, 64) uint8 after encoding and decoding."""
    target = pictures.float() / 127.5 - 1
    output = model.decode(model.encode(target).latents).sample.clamp(-1, 1)
    error = (output - target).square().mean(dim=(1, 2, 3)) / 4
    return float((-10 * error.log10()).mean())


if __name__ == "__main__":
    main()
