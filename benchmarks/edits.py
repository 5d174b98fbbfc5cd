"""Edits on the CPU: seconds and distance of the embedded model's image to image and inpainting, by strength.

    python -m benchmarks.edits

Each prompt changes a picture that the model has made itself, through a real Triton, with the cache off and with the
model's default settings; text to image, and plain diffusers in this process, are measured beside them. All ways take
turns. The distance is the PSNR of the two pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from benchmarks.environment import RESULTS, describe
from benchmarks.harness import (
    MODEL,
    check_least,
    config_of,
    embedded_server,
    parser_of,
    say,
    show,
    take_turns,
    warm_up,
    write,
)
from clients.demo import psnr
from plugin.config import ModelConfig
from plugin.denoising.loading import load_pipeline
from plugin.ops.server import ServerError
from triton_taylorseer_client import Client, Generation
from triton_taylorseer_client.messages import Pixels

EDITS = (
    ("red apple, 3d", "lemon, 3d"),
    ("tiger face, twemoji", "cat face, twemoji"),
    ("hamburger, 3d", "pizza, 3d"),
    ("sunflower, noto", "rainbow, noto"),
    ("octopus, flat", "octopus, 3d"),
    ("rocket, fluent", "airplane, fluent"),
    ("penguin, noto", "owl, noto"),
    ("birthday cake, fluent", "doughnut, fluent"),
    ("cactus, flat", "palm tree, flat"),
    ("red heart, twemoji", "blue heart, twemoji"),
    ("cow face, 3d", "pig face, 3d"),
    ("bus, noto", "automobile, noto"),
)
STRENGTHS = (0.3, 0.6, 0.8, 1.0)
_STEPS, _SEED = 50, 5


@dataclass(frozen=True)
class Way:
    """One kind of request.

    Attributes:
        kind: "text to image", "image to image" or "inpainting".
        strength: None from text.
    """

    kind: str
    strength: float | None = None

    def fields(self, picture: Pixels) -> dict[str, Any]:
        """What it adds to a request, for a picture (height, width, 3) uint8. A mask is white on the left."""
        if self.strength is None:
            return {}
        fields: dict[str, Any] = {"input_image": picture, "strength": self.strength}
        if self.kind == "inpainting":
            fields["mask_image"] = np.arange(picture.shape[1])[None].repeat(picture.shape[0], 0) < picture.shape[1] // 2
        return fields


WAYS = (Way("text to image"), *(Way(kind, each) for kind in ("image to image", "inpainting") for each in STRENGTHS))


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints a table, and writes the result as JSON."""
    parser = parser_of("edits", __doc__)
    parser.add_argument("--turns", type=int, default=5, help="measurements of each way")
    parser.add_argument("--edits", type=int, default=len(EDITS), help="pairs of prompts for the distances")
    parser.add_argument("--output", type=Path, default=RESULTS / "edits.json")
    arguments = parser.parse_args(argv)
    check_least(parser, arguments, turns=1, edits=1)
    try:
        result = measure(arguments.turns, EDITS[: arguments.edits])
    except ServerError as error:
        raise SystemExit(f"error: {error}") from None
    write(arguments.output, result)
    _print(result, arguments.output)


def measure(turns: int, edits: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """All figures of one run; seconds are medians over the turns."""
    config = config_of(MODEL)
    pipe = load_pipeline(config.source)
    with embedded_server() as server, Client(server.grpc_url, MODEL) as client:
        pictures = [client.generate(of, seed=7, num_inference_steps=_STEPS).image[0] for of, _ in edits]
        results = [_distances(client, way, edits, pictures) for way in WAYS]
        calls = _calls(client, pipe, config, edits[0][1], pictures[0])
        warm_up(calls)
        seconds = take_turns(calls, turns, shown_as="turns")
    for way, result in zip(WAYS, results, strict=True):
        times = {name: median(seconds[way, name]) for name in ("off", "on", "diffusers")}
        result |= {f"{name}_s": value for name, value in times.items()}
        result |= {"speed_up": times["off"] / times["on"], "speed_up_to_diffusers": times["diffusers"] / times["on"]}
    return describe() | {"model": MODEL, "steps": _STEPS, "edits": [*edits], "turns": turns, "ways": results}


def _distances(
    client: Client, way: Way, edits: Sequence[tuple[str, str]], pictures: Sequence[Pixels]
) -> dict[str, Any]:
    """Of one way: the steps, and the distances of the cache on to the cache off."""
    pairs: list[tuple[Generation, Generation]] = []
    for (_, prompt), picture in zip(edits, pictures, strict=True):
        fields = {"seed": _SEED, "num_inference_steps": _STEPS, **way.fields(picture)}
        pairs.append((client.generate(prompt, **fields, cache_interval=1), client.generate(prompt, **fields)))
    distances = [psnr(off.image, on.image) for off, on in pairs]
    report = pairs[0][1].report
    return {
        "kind": way.kind,
        "strength": way.strength,
        "num_steps": report["num_steps"],
        "full_steps": len(report["full_steps"]),
        "psnr_db": mean(distances),
        "psnr_db_least": min(distances),
    }


def _calls(
    client: Client, pipe: Any, config: ModelConfig, prompt: str, picture: Pixels
) -> Mapping[tuple[Way, str], Callable[[], object]]:
    calls: dict[tuple[Way, str], Callable[[], object]] = {}
    for way in WAYS:
        fields = {"seed": _SEED, "num_inference_steps": _STEPS, **way.fields(picture)}
        calls[way, "off"] = lambda fields=fields: client.generate(prompt, **fields, cache_interval=1)  # type: ignore[misc]
        calls[way, "on"] = lambda fields=fields: client.generate(prompt, **fields)  # type: ignore[misc]
        calls[way, "diffusers"] = _plain(pipe, config, prompt, way, picture)
    return calls


def _plain(pipe: Any, config: ModelConfig, prompt: str, way: Way, picture: Pixels) -> Callable[[], object]:
    """The same by diffusers itself."""
    names = {"text to image": "Flux", "image to image": "FluxImg2Img", "inpainting": "FluxInpaint"}
    made = getattr(diffusers, f"{names[way.kind]}Pipeline")(**pipe.components)
    made.set_progress_bar_config(disable=True)
    fields = way.fields(picture)
    pictures = {}
    if "input_image" in fields:
        pictures = {"image": Image.fromarray(picture), "strength": way.strength}
    if "mask_image" in fields:
        pictures["mask_image"] = Image.fromarray(fields["mask_image"].astype(np.uint8) * 255)
    return lambda: made(
        prompt,
        **pictures,
        height=config.defaults.height,
        width=config.defaults.width,
        num_inference_steps=_STEPS,
        guidance_scale=config.defaults.guidance_scale,
        max_sequence_length=config.max_sequence_length,
        generator=torch.Generator().manual_seed(_SEED),
    )


def _print(result: dict[str, Any], path: Path) -> None:
    columns = ("", "steps", "full", "off", "on", "speed-up", "diffusers", "PSNR dB", "least")
    rows = [
        (
            each["kind"] + ("" if each["strength"] is None else f", strength {each['strength']}"),
            f"{each['num_steps']}",
            f"{each['full_steps']}",
            f"{each['off_s']:.3f} s",
            f"{each['on_s']:.3f} s",
            f"{each['speed_up']:.2f}x",
            f"{each['diffusers_s']:.3f} s",
            f"{each['psnr_db']:.1f}",
            f"{each['psnr_db_least']:.1f}",
        )
        for each in result["ways"]
    ]
    show(f"{MODEL}, edits of {result['steps']} steps", columns, rows, numbers=True)
    say(f"written to {path}")


if __name__ == "__main__":
    main()
