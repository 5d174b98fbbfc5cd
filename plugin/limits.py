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
        max_pictures: most files of input_image; the frames of a video may be files of their own.
        max_picture_bytes: largest picture file.
        max_picture_pixels: most pixels of a picture file, all frames of an animation together.
        max_followed_pixels: most pixels of a result whose size follows from its picture; 0 for no limit but max_size.
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
    max_pictures: int = 16
    max_picture_bytes: int = 20 << 20
    max_picture_pixels: int = 50_000_000
    max_followed_pixels: int = 0

    @property
    def max_files(self) -> int:
        """Most files of input_image, where the frames of a video are files too."""
        return max(self.max_pictures, self.max_frames)
