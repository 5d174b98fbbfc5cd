"""What a host does not serve is refused with a sentence, and reaches no other request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import AutoencoderKL, DiffusionPipeline, FirstBlockCacheConfig, FluxPipeline
from diffusers.hooks import apply_layerwise_casting
from peft import LoraConfig
from torch import nn

from plugin.config import ModelConfig
from plugin.denoising.host import PipelineHost
from plugin.denoising.unserved import NotServed, check_arguments
from plugin.tasks import _TASKS as PIPELINES
from taylorseer import CacheConfig
from tests.support.paths import ROOT
from tests.support.tiny import FAMILIES, latents_of
from tests.support.tiny.declared import DECLARED

OFF = CacheConfig(interval=1)
FLUX = {**FAMILIES["flux"].arguments, **FAMILIES["flux"].sizes[0]}
LORA = LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)

Make = Callable[[], FluxPipeline]


@pytest.fixture
def pipe(make_flux: Make) -> FluxPipeline:
    return make_flux()


# At PipelineHost


class Hollow(DiffusionPipeline):
    """A pipeline without a transformer."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.register_modules(vae=vae)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (object, r"pipe is a object, must be a diffusers pipeline with a transformer of: DiTTransformer2DModel, "),
        (lambda: nn.Linear(1, 1), r"pipe is a Linear, must be a diffusers pipeline"),
        (lambda: Hollow(None), r"Hollow has no transformer, must be a pipeline with one of: DiTTransformer2DModel, "),
    ],
)
def test_what_is_no_pipeline_of_a_served_transformer_is_named(made: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        PipelineHost(made())


def test_a_pipeline_of_pipelines_is_refused(pipe: FluxPipeline) -> None:
    pipe.generation_pipe = FluxPipeline(**pipe.components)
    with pytest.raises(TypeError, match=r"FluxPipeline runs pipelines inside itself \(generation_pipe\): host these"):
        PipelineHost(pipe)


def _accelerate(pipe: FluxPipeline) -> None:
    add_hook_to_module(pipe.transformer, ModelHook())


def _accelerate_on_a_part(pipe: FluxPipeline) -> None:
    add_hook_to_module(pipe.transformer.transformer_blocks[0], ModelHook())


def _casting(pipe: FluxPipeline) -> None:
    apply_layerwise_casting(pipe.transformer, torch.float8_e4m3fn, torch.float32)


def _diffusers_cache(pipe: FluxPipeline) -> None:
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))


def _forward_hook(pipe: FluxPipeline) -> None:
    pipe.transformer.register_forward_hook(lambda *_: None)


def _device_map(pipe: FluxPipeline) -> None:
    pipe.hf_device_map = {"transformer": "cpu", "vae": "disk"}


def _offloaded(pipe: FluxPipeline) -> None:
    pipe._all_hooks = [object()]  # what enable_model_cpu_offload leaves; it needs an accelerator


HOOKS = [
    (_accelerate, "FluxTransformer2DModel has a hook of accelerate .* PipelineHost's offload"),
    (_accelerate_on_a_part, "FluxTransformerBlock has a hook of accelerate"),
    (_casting, "has a hook of diffusers"),
    (_diffusers_cache, r"the transformer has a cache of diffusers enabled, must have none: disable_cache\(\)"),
    (_forward_hook, "FluxTransformer2DModel has a forward hook, must have none"),
    (_device_map, "FluxPipeline has a device_map, must be on one device"),
    (_offloaded, "FluxPipeline is offloaded, must stay on its device: leave .* out. PipelineHost's offload"),
]


@pytest.mark.parametrize(("hook", "message"), HOOKS)
def test_hooks_are_refused_when_the_host_is_made(pipe: FluxPipeline, hook: Any, message: str) -> None:
    hook(pipe)
    with pytest.raises(NotServed, match=message):
        PipelineHost(pipe)


@pytest.mark.parametrize(("hook", "message"), [HOOKS[0], HOOKS[4]])
def test_hooks_that_come_later_are_refused_at_the_next_request(pipe: FluxPipeline, hook: Any, message: str) -> None:
    host = PipelineHost(pipe)
    host.pipeline_for(OFF)
    hook(pipe)
    with pytest.raises(NotServed, match=message):
        host.pipeline_for(OFF)


def test_a_timestep_for_each_token_needs_the_torch_engine(tmp_path: Path) -> None:
    wan = FAMILIES["wan"].make(tmp_path, torch.float32)
    wan.register_to_config(expand_timesteps=True)
    with pytest.raises(
        NotServed, match="engine is 'onnxruntime', must be 'torch': WanPipeline has a timestep for each"
    ):
        PipelineHost(wan, engine="onnxruntime")
    PipelineHost(wan)


# Adapters


def test_adapters_that_come_or_change_after_the_host_was_made_are_refused(pipe: FluxPipeline) -> None:
    host = PipelineHost(pipe)
    pipe.transformer.add_adapter(LORA)
    with pytest.raises(NotServed, match="the adapters of transformer have changed since PipelineHost was made"):
        host.pipeline_for(OFF)
    again = PipelineHost(pipe)
    again.pipeline_for(OFF)
    for part in pipe.transformer.modules():
        if hasattr(part, "scale_layer"):
            part.scale_layer(0.5)
    with pytest.raises(NotServed, match="make a host for each set of adapters"):
        again.pipeline_for(OFF)


def test_adapters_that_were_there_before_are_served_bit_for_bit(pipe: FluxPipeline, make_flux: Make) -> None:
    pipe.transformer.add_adapter(LORA)
    expected = latents_of(pipe, **FLUX)
    assert torch.equal(latents_of(PipelineHost(pipe).pipeline_for(OFF), **FLUX), expected)
    assert not torch.equal(latents_of(make_flux(), **FLUX), expected)


@pytest.mark.parametrize(
    ("name", "arguments", "instead"),
    [
        ("load_lora_weights", ("nobody/lora",), "load and fuse adapters before PipelineHost is made"),
        ("set_adapters", ("default",), "load and fuse adapters before"),
        ("fuse_lora", (), "load and fuse adapters before"),
        ("load_textual_inversion", ("nobody/text",), "load the embeddings into the pipeline before"),
        ("load_ip_adapter", ("nobody/ip",), "IP-Adapters are not served by a host"),
        ("to", ("cpu",), "move the pipeline before"),
        ("enable_model_cpu_offload", (), "PipelineHost's offload"),
        ("enable_sequential_cpu_offload", (), "PipelineHost's offload"),
        ("enable_group_offload", (), "PipelineHost's offload .* offloads encoders and autoencoder"),
    ],
)
def test_what_would_change_other_requests_is_refused_on_a_request_s_pipeline(
    pipe: FluxPipeline, name: str, arguments: tuple[Any, ...], instead: str
) -> None:
    host = PipelineHost(pipe)
    with pytest.raises(NotServed, match=f"{name} of a request's pipeline would change other requests too: {instead}"):
        getattr(host.pipeline_for(OFF), name)(*arguments)


@pytest.mark.parametrize(
    "name", ["add_adapter", "set_adapter", "load_lora_adapter", "enable_cache", "set_attn_processor"]
)
def test_a_request_s_transformer_changes_nothing_of_the_shared_one(pipe: FluxPipeline, name: str) -> None:
    transformer = PipelineHost(pipe).pipeline_for(OFF).transformer
    with pytest.raises(NotServed, match=f"{name} of a request's transformer would change other requests too"):
        getattr(transformer, name)("default")
    with pytest.raises(NotServed, match="cannot be moved or cast"):
        transformer.half()
    assert pipe.transformer.dtype == torch.float32
    assert next(transformer.parameters()) is next(pipe.transformer.parameters())


def test_a_hook_on_a_request_s_own_transformer_is_run_for_that_request_alone(pipe: FluxPipeline) -> None:
    host = PipelineHost(pipe)
    hooked, other = host.pipeline_for(CacheConfig(interval=3, warmup_steps=1)), host.pipeline_for(OFF)
    calls: list[int] = []
    hooked.transformer.register_forward_hook(lambda *_: calls.append(1))
    for each in (hooked, other):
        latents_of(each, steps=6, **FLUX)
    assert len(calls) == 6


def test_what_a_request_s_call_leaves_on_it_other_requests_do_not_see(pipe: FluxPipeline) -> None:
    host = PipelineHost(pipe)
    first = host.pipeline_for(OFF)
    expected = latents_of(pipe, **FLUX)
    first.vae.enable_tiling()
    first.scheduler.register_to_config(shift=9.0)
    assert torch.equal(latents_of(host.pipeline_for(OFF), **FLUX), expected)
    assert isinstance(pipe.vae, AutoencoderKL)
    assert not pipe.vae.use_tiling


def test_the_device_of_a_request_s_pipeline_is_that_of_its_transformer(pipe: FluxPipeline) -> None:
    host = PipelineHost(pipe)
    meta = FluxPipeline(
        **{**dict.fromkeys(pipe.components), "scheduler": pipe.scheduler, "transformer": pipe.transformer}
    )
    meta.transformer.to("meta")
    alone = PipelineHost(meta).pipeline_for(OFF)
    assert alone.device == torch.device("meta")
    assert host.families["transformer"].transformer is pipe.transformer


def test_pipelines_with_a_scheduler_for_each_frame_are_refused(tmp_path):
    pipe = DECLARED["skyreels_v2"].make(tmp_path, torch.float32)
    forcing = diffusers.SkyReelsV2DiffusionForcingPipeline(**pipe.components)
    with pytest.raises(TypeError, match="SkyReelsV2DiffusionForcingPipeline has a scheduler for each frame"):
        PipelineHost(forcing)


def test_pipelines_that_exchange_attention_are_refused(tmp_path):
    """Two requests at once would get each other's."""
    pipe = DECLARED["sana"].make(tmp_path, torch.float32)
    with pytest.raises(TypeError, match="SanaPAGPipeline exchanges the attention of the shared transformer"):
        PipelineHost(diffusers.SanaPAGPipeline(**pipe.components))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("SkipLayerGuidance", {"skip_layer_guidance_layers": [0]}),
        ("PerturbedAttentionGuidance", {"perturbed_guidance_layers": [0]}),
        ("SmoothedEnergyGuidance", {"seg_guidance_layers": [0]}),
        ("AutoGuidance", {"auto_guidance_layers": [0], "dropout": 1.0}),
    ],
)
@pytest.mark.parametrize("component", ["guider", "ocr_guider"])
def test_guiders_that_hook_layers_are_refused(tmp_path, component, kind, options):
    """HunyuanImage has one for pictures and one for pictures of text."""
    pipe = DECLARED["hunyuan_image_21"].make(tmp_path, torch.float32)
    pipe.register_modules(**{component: getattr(diffusers, kind)(**options)})
    with pytest.raises(NotServed, match=f"^{component} is a {kind}, which hooks layers of the shared transformer"):
        PipelineHost(pipe)


@pytest.mark.parametrize(
    ("kind", "needs"),
    [
        *((f"{model}ImageToVideoPipeline", "image") for model in ("CogVideoX", "HunyuanVideo15", "Sana", "SkyReelsV2")),
        ("Kandinsky5I2VPipeline", "image"),
        ("LucyEditPipeline", "video"),
        ("Cosmos2_5_TransferPipeline", "controls"),
    ],
)
def test_pipelines_whose_call_needs_what_no_request_has_are_not_served(kind, needs):
    """A served model of one would fail in each request."""
    pipe = object.__new__(getattr(diffusers, kind))
    refused = f"^{kind} needs {needs}, which no request has: call it in process, by PipelineHost$"
    with pytest.raises(NotServed, match=refused):
        PipelineHost.from_config(pipe, ModelConfig.from_folder(ROOT / "model_repository/emoji_stream"))


def test_what_the_calls_of_served_pipelines_need_is_in_requests(tmp_path):
    kinds = {getattr(diffusers, name) for name in PIPELINES}
    kinds |= {type(family.make(tmp_path, torch.float32)) for family in (*FAMILIES.values(), *DECLARED.values())}
    for kind in kinds:
        check_arguments(object.__new__(kind))
