"""What one model accepts of a request."""

from __future__ import annotations

from dataclasses import dataclass

from taylorseer.schedule import MAX_STEPS


@dataclass(frozen=True)
class Limits:
    """What one model accepts, within the ranges that hold for every model.

    Attributes:
        max_steps: most denoising steps.
        max_prompt_bytes: longest prompt in bytes of UTF-8.
        min_size, max_size: range of height and width in pixels.
        size_multiple: height and width must be multiples of it.
        max_frames: most frames; 1 for models of pictures.
        frames_multiple: a video has 1 + a multiple of it frames, as its autoencoder compresses time.
        takes_prompt: True for models of a prompt, False for models of a class label.
        num_classes: labels of models of a class label.
    """

    max_steps: int = MAX_STEPS
    max_prompt_bytes: int = 8192
    min_size: int = 16
    max_size: int = 2048
    size_multiple: int = 16
    max_frames: int = 1
    frames_multiple: int = 4
    takes_prompt: bool = True
    num_classes: int = 1000
