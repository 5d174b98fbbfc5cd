"""Tiny random pipelines, shaped like the real ones: more than one block of each kind, real tokenizers, no hub."""

from tests.tiny.dit import FAMILY as DIT
from tests.tiny.family import Guidance, TinyFamily, block_inputs_of, latents_of
from tests.tiny.flux import FAMILY as FLUX
from tests.tiny.hidream import FAMILY as HIDREAM
from tests.tiny.hunyuan_video import FAMILY as HUNYUAN_VIDEO
from tests.tiny.wan import FAMILY as WAN

FAMILIES: dict[str, TinyFamily] = {
    "dit": DIT,
    "flux": FLUX,
    "hidream": HIDREAM,
    "hunyuan_video": HUNYUAN_VIDEO,
    "wan": WAN,
}

__all__ = ["FAMILIES", "Guidance", "TinyFamily", "block_inputs_of", "latents_of"]
