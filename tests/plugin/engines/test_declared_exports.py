"""The block stacks of declared families in ONNX Runtime: what torch gives, at every size and batch."""

from __future__ import annotations

import pytest
import torch

from plugin.denoising.host import PipelineHost
from plugin.engines import make_engine
from plugin.families import family_of
from plugin.families.examples import NotExported
from taylorseer import CacheConfig
from tests.support.tiny import latents_of
from tests.support.tiny.declared import DECLARED

# One of each form that a declaration can take: two streams with a mask and complex tables, lists that are joined, an
# argument for each block, tokens before the batch, lengths as arguments, text and picture in one stream with a mask of
# its own, a video.
EXPORTED = ("lumina2", "qwen_image", "flux2", "chroma", "ernie_image", "sana", "z_image", "hunyuan_video15")


@pytest.mark.compiles
@pytest.mark.parametrize("name", EXPORTED)
def test_onnxruntime_gives_what_torch_gives(name, tmp_path, engine_cache):
    """One engine for every size, kind of guidance and batch. float32, other summation orders: 1e-3 of the latents' size
    after 5 steps of random weights; a wrong table or mask is off by tenths."""
    family = DECLARED[name]
    pipe = family.make(tmp_path, torch.float32)
    host = PipelineHost(pipe, "onnxruntime", cache_dir=engine_cache)
    kinds = list(family.guidance.values())
    calls = [{**size, **kinds[index % len(kinds)].arguments} for index, size in enumerate(family.sizes)]
    if family.batch:
        calls.append({**family.sizes[0], **kinds[0].arguments, **family.batch})
        if "negative_prompt" in calls[-1]:
            calls[-1]["negative_prompt"] = [calls[-1]["negative_prompt"]] * 2
    for call in calls:
        arguments = {**family.arguments, **call}
        expected = latents_of(pipe, **arguments)
        difference = (latents_of(host.pipeline_for(CacheConfig(interval=1)), **arguments) - expected).abs().max()
        assert difference <= 1e-3 * expected.abs().max(), call


@pytest.mark.parametrize("name", ["allegro", "lumina_next", "mochi", "nucleusmoe_image"])
def test_blocks_that_cannot_be_exported_say_so_and_what_to_set(name, tmp_path):
    family = DECLARED[name]
    transformer = getattr(family.make(tmp_path, torch.float32), family.transformer)
    with pytest.raises(NotExported, match=r"the blocks of \w+ cannot be exported \(.+\): set engine to torch"):
        make_engine("onnxruntime", family_of(transformer), tmp_path)
