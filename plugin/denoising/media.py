"""Pictures and videos as files."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt


def encode(image: npt.NDArray[np.uint8], fps: int) -> bytes:
    """The PNG of one frame, or the MP4 (H.264) of several.

    Args:
        image: (frames, height, width, 3) uint8; height and width of a video are even.
        fps: frames per second of a video.
    """
    if len(image) == 1:
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(image[0]).save(file, format="PNG")
        return file.getvalue()
    import imageio.v3 as imageio

    return imageio.imwrite("<bytes>", image, extension=".mp4", plugin="pyav", codec="libx264", fps=fps)
