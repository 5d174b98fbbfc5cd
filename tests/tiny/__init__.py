"""Tiny random pipelines, shaped like the real ones: more than one block of each kind, real tokenizers, no hub."""

from tests.tiny.family import Guidance, TinyFamily, latents_of
from tests.tiny.flux import FAMILY as FLUX

FAMILIES: dict[str, TinyFamily] = {"flux": FLUX}

__all__ = ["FAMILIES", "Guidance", "TinyFamily", "latents_of"]
