"""Tiny random pipelines, shaped like the real ones: more than one block of each kind, real tokenizers, no hub."""

from tests.support.tiny.dit import FAMILY as DIT
from tests.support.tiny.family import Guidance, TinyFamily, block_inputs_of, latents_of
from tests.support.tiny.flux import FAMILY as FLUX
from tests.support.tiny.hidream import FAMILY as HIDREAM
from tests.support.tiny.hunyuan_video import FAMILY as HUNYUAN_VIDEO
from tests.support.tiny.wan import FAMILY as WAN

FAMILIES: dict[str, TinyFamily] = {
    "dit": DIT,
    "flux": FLUX,
    "hidream": HIDREAM,
    "hunyuan_video": HUNYUAN_VIDEO,
    "wan": WAN,
}

__all__ = ["FAMILIES", "Guidance", "TinyFamily", "block_inputs_of", "latents_of"]
