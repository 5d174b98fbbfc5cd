"""The tiny pipelines of the families that are declarations."""

from __future__ import annotations

from importlib import import_module

from tests.support.tiny.family import TinyFamily

_NAMES = (
    *("auraflow", "bria", "chroma", "cogview3", "cogview4", "ernie_image", "hunyuan_dit", "hunyuan_image_21"),
    *("longcat_image", "lumina2", "lumina_next", "nucleusmoe_image", "ovis_image", "pixart", "prx", "sana"),
    *("flux2", "krea2", "qwen_image", "sd3", "z_image"),
    *("allegro", "cogvideox", "cosmos", "easyanimate", "hunyuan_video15", "kandinsky5", "ltx", "mochi"),
    *("sana_video", "skyreels_v2"),
)

DECLARED: dict[str, TinyFamily] = {name: import_module(f"tests.support.tiny.{name}").FAMILY for name in _NAMES}
