"""The block stacks of declared families in other engines: ONNX Runtime gives what torch gives, at every size and batch,
and TensorRT-RTX compiles those that are served most."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from plugin.building.build_model import BuildRequest, build_model
from plugin.config import ModelConfig
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline
from plugin.engines import make_engine
from plugin.engines.tensorrt.build import build_engine
from plugin.engines.tensorrt.engine import choose_profile
from plugin.engines.tensorrt.options import BuildOptions, SizeClass
from plugin.families import family_of
from plugin.families.examples import NotExported
from taylorseer import CacheConfig
from tests.support.models import FLAVOUR, write_model
from tests.support.tiny import block_inputs_of, latents_of
from tests.support.tiny.declared import DECLARED
from tests.support.tiny.qwen_image import tiny_qwen_image_edit

SERVED_MOST = ("krea2", "flux2", "qwen_image", "z_image", "sd3", "hunyuan_video15")
# One of each form that a declaration can take: two streams with a mask and complex tables, lists that are joined, an
# argument for each block, tokens before the batch, lengths as arguments, text and picture in one stream with a mask of
# its own, a video.
EXPORTED = ("lumina2", "chroma", "ernie_image", "sana", *SERVED_MOST)


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


@pytest.mark.compiles
@pytest.mark.parametrize("name", SERVED_MOST)
def test_tensorrt_rtx_compiles_a_profile_for_each_size_and_every_text(name, tmp_path, monkeypatch):
    """From a saved pipeline, as `build` does it, in float32, whose export the test above has left. What the blocks get
    for a short and a long prompt must fall into the profile of its size."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    monkeypatch.setenv("TRITON_TAYLORSEER_CACHE", str(tmp_path / "cache"))
    family = DECLARED[name]
    text = {key: str(family.arguments[key]) for key in ("max_sequence_length",) if key in family.arguments}
    model = write_model(tmp_path, name, "float32", **text)
    sizes = [(size["height"], size["width"]) for size in (family.sizes[0], family.sizes[-1])]
    frames = family.sizes[0].get("num_frames")
    request = BuildRequest(sizes=tuple(sizes), num_frames=(frames,) if frames else (), targets=("SM89",))
    (built,) = build_model(model, request)
    engine = built.engine
    assert engine is not None
    pipe = load_pipeline(replace(ModelConfig.from_folder(model).source, device="cpu"))
    chosen = set()
    for size, prompt in product(sizes, ("a", 8 * "a red apple on a tree ")):
        arguments = {"height": size[0], "width": size[1], **({"num_frames": frames} if frames else {})}
        served, inputs = block_inputs_of(family, pipe, {**family.arguments, **arguments, "prompt": prompt})
        chosen.add(engine.profiles[choose_profile(engine, served.completed(inputs))].size)
    plain = {profile.size for profile in engine.profiles if "with a picture" not in profile.size}
    assert chosen == plain
    assert len(plain) == len(sizes)


@pytest.mark.compiles
def test_tokens_of_pictures_without_noise_are_exported_with_their_own_modulation(tmp_path):
    """Qwen-Image-Edit-2511 (`zero_cond_t`): each row has two modulations, and an index says which one a token gets."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    family = family_of(tiny_qwen_image_edit(tmp_path, zero_cond_t=True).transformer)
    engine, stack = make_engine("onnxruntime", family, tmp_path), family.block_stack()
    for batch, picture, text in ((1, 24, 7), (3, 40, 9)):
        inputs = family.inputs_of_size({"batch": batch, **family.axis_sizes(picture, text)})
        inputs["modulate_index"][:, 10:] = 1
        with torch.no_grad():
            expected = stack(**inputs)
            inputs["modulate_index"][:] = 0
            assert (stack(**inputs) - expected).abs().max() > 1e-2 * expected.abs().max()
        inputs["modulate_index"][:, 10:] = 1
        assert (engine.run(inputs) - expected).abs().max() <= 1e-4 * expected.abs().max()  # float32, other sums
    options = BuildOptions((1, 2, 2), (SizeClass("24", family.axis_sizes(24, 7)),), ("SM89",))
    assert build_engine(family, FLAVOUR, options, tmp_path).layers > 50
