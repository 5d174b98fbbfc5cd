"""Offloaded encoders and autoencoders: the plain pipeline's bits, whatever else runs, and the memory that it saves."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import AutoencoderKL, FluxImg2ImgPipeline, FluxPipeline, FluxTransformer2DModel
from diffusers.hooks import apply_group_offloading
from torch import nn

from plugin.config import ModelConfig, PipelineSource
from plugin.denoising.events import NoEvents, Pixels
from plugin.denoising.generation import generate
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline
from plugin.denoising.offloading import ComponentPlace, Offloaded, stand_ins
from plugin.denoising.unserved import NotServed
from plugin.memory import resident_bytes
from plugin.serving.plan import architecture_of_pipe, example_request
from taylorseer import CacheConfig
from tests.support.large_encoder import PeakMemory, flux_with_large_encoder, weights_bytes
from tests.support.paths import ROOT
from tests.support.tiny import FAMILIES
from tests.support.tiny.declared import DECLARED

OFF = CacheConfig(interval=1)
IDLE = (("text_encoder", "idle"), ("text_encoder_2", "idle"), ("vae", "idle"))
CPU = torch.device("cpu")
FLUX = {"height": 32, "width": 32, "guidance_scale": 2.5, "max_sequence_length": 16}
PROMPTS = [f"a {colour} apple" for colour in ("red", "blue", "green", "white", "black", "pink", "grey", "brown")]

Make = Callable[..., FluxPipeline]


def picture(pipe: Any, prompt: str = "a red apple", steps: int = 2, **more: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    arguments = {**FLUX, **more}
    return pipe(prompt, num_inference_steps=steps, generator=generator, output_type="np", **arguments).images


@pytest.fixture
def pipe(make_flux: Make) -> FluxPipeline:
    return make_flux()


def users(host: PipelineHost) -> set[int]:
    placed = (getattr(each, "place", None) for each in host.pipe.components.values())
    return {place.weights.users for place in placed if place is not None}


# The same bits


@pytest.mark.parametrize(
    "name",
    [
        *FAMILIES,  # of which hidream has four encoders
        *("flux2", "krea2"),  # whose autoencoder is read beside its calls
        *("sana_video", "ltx", "cogvideox"),  # which ask what kind of autoencoder they have, or keep frames on it
    ],
)
def test_idle_components_give_the_bits_of_the_plain_pipeline(tmp_path, name):
    family = (FAMILIES | DECLARED)[name]
    pipe = family.make(tmp_path, torch.float32)
    arguments = {**family.arguments, **family.sizes[0], "num_inference_steps": 2, "output_type": "np"}

    def made(of: Any) -> np.ndarray:
        return np.asarray(of(**arguments, generator=torch.Generator().manual_seed(0), return_dict=False)[0])

    expected = made(pipe)
    offload = [
        (name, "idle")
        for name, each in pipe.components.items()
        if isinstance(each, nn.Module) and not name.startswith("transformer")
    ]
    host = PipelineHost(pipe, offload=offload)
    assert np.array_equal(made(host.pipeline_for(OFF)), expected)
    assert np.isfinite(expected).all()
    assert users(host) == {0}
    for component, _ in offload:
        assert all(each.isnan().all() for each in pipe.components[component].parameters() if each.numel()), component


def test_an_idle_autoencoder_encodes_the_pictures_of_requests(pipe):
    source = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    plain = FluxImg2ImgPipeline(**pipe.components)
    expected = picture(plain, image=source, strength=0.8, steps=4)
    host = PipelineHost(pipe, offload=IDLE)
    served = host.pipeline_for(OFF, pipeline_class=FluxImg2ImgPipeline)
    assert np.array_equal(picture(served, image=source, strength=0.8, steps=4), expected)


class Previews(NoEvents):
    """Keeps the previews of a request."""

    def __init__(self) -> None:
        self.pictures: list[np.ndarray] = []

    def progress(self, step: int, num_steps: int, preview: Pixels | None) -> None:
        if preview is not None:
            self.pictures.append(preview)


def test_an_idle_autoencoder_decodes_previews(pipe):
    config = ModelConfig.from_folder(ROOT / "model_repository/emoji_stream")
    request = example_request(config, prompt="a red apple", num_inference_steps=6, preview=True)

    def previews_of(host: PipelineHost) -> list[np.ndarray]:
        events = Previews()
        generate(host, replace(request, height=32, width=32), events, max_sequence_length=16, preview_interval=2)
        return events.pictures

    expected = previews_of(PipelineHost(pipe))
    found = previews_of(PipelineHost(pipe, offload=IDLE))
    assert len(expected) >= 2
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_eight_threads_at_once_get_what_each_gets_alone(pipe):
    expected = [picture(pipe, prompt) for prompt in PROMPTS]
    host = PipelineHost(pipe, offload=IDLE)
    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda prompt: picture(host.pipeline_for(OFF), prompt), PROMPTS))
        assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
        assert users(host) == {0}


def test_a_call_that_fails_leaves_the_component_idle_and_the_next_request_is_right(pipe):
    expected = picture(pipe)
    breaks = {"now": True}

    def hook(*_: Any) -> None:
        if breaks["now"]:
            raise RuntimeError("the encoder broke on purpose")

    pipe.text_encoder_2.encoder.block[1].register_forward_pre_hook(hook)
    host = PipelineHost(pipe, offload=IDLE)
    with pytest.raises(RuntimeError, match="broke on purpose"):
        picture(host.pipeline_for(OFF))
    assert users(host) == {0}
    assert pipe.text_encoder_2.shared.weight.isnan().all()
    breaks["now"] = False
    assert np.array_equal(picture(host.pipeline_for(OFF)), expected)


def test_components_come_for_their_calls_alone_one_after_the_other(pipe):
    host = PipelineHost(pipe, offload=IDLE)
    seen: list[tuple[str, tuple[str, ...]]] = []

    def there() -> tuple[str, ...]:
        every = {name: pipe.components[name] for name, _ in IDLE}
        return tuple(name for name, each in every.items() if not next(each.parameters()).isnan().any())

    watched = {"text_encoder": pipe.text_encoder, "text_encoder_2": pipe.text_encoder_2, "vae": pipe.vae.decoder}
    for name, module in {**watched, "transformer": pipe.transformer.norm_out}.items():
        module.register_forward_pre_hook(lambda *_, name=name: seen.append((name, there())))
    picture(host.pipeline_for(OFF))
    once = list(dict.fromkeys(seen))
    assert once == [(each, (each,)) for each in ("text_encoder", "text_encoder_2")] + [
        ("transformer", ()),
        ("vae", ("vae",)),
    ]


# What a pipeline sees in place of a component


@pytest.fixture
def idle(pipe: FluxPipeline) -> dict[str, Offloaded]:
    return stand_ins(pipe, CPU, IDLE)


def test_a_stand_in_is_read_like_its_component(pipe, idle):
    vae = idle["vae"]
    assert isinstance(vae, AutoencoderKL)
    assert vae.__class__ is AutoencoderKL
    assert (vae.config, vae.dtype, vae.device) == (pipe.vae.config, torch.float32, CPU)
    assert [*vae.modules()] == [*pipe.vae.modules()]
    assert vae.eval() is vae
    assert vae.to("cpu", dtype=torch.float32) is vae
    assert not hasattr(vae, "no_such_thing")


def test_parts_compute_and_weights_are_read_as_if_they_were_there(make_flux, idle):
    plain, hidden = make_flux(), torch.rand(1, 3, 32)
    final = idle["text_encoder_2"].encoder.final_layer_norm
    assert torch.equal(final(hidden), plain.text_encoder_2.encoder.final_layer_norm(hidden))
    assert torch.equal(final.weight, plain.text_encoder_2.encoder.final_layer_norm.weight)
    embedded = idle["text_encoder_2"].get_input_embeddings()(torch.tensor([3]))
    assert torch.equal(embedded, plain.text_encoder_2.shared(torch.tensor([3])))


def test_what_a_copy_is_set_to_the_others_do_not_see(pipe, idle):
    copied = copy.copy(idle["vae"])
    copied.enable_tiling()
    copied.tile_sample_min_size = 16
    assert copied.use_tiling
    assert not pipe.vae.use_tiling
    assert pipe.vae.tile_sample_min_size != 16
    assert copied.place is idle["vae"].place


@pytest.mark.parametrize("name", ["half", "cpu", "load_state_dict", "apply"])
def test_what_would_change_the_shared_weights_is_refused(idle, name):
    with pytest.raises(NotServed, match=f"{name} of an offloaded AutoencoderKL would change other requests too"):
        getattr(idle["vae"], name)()
    with pytest.raises(NotServed, match="to of an offloaded AutoencoderKL would change"):
        idle["vae"].to(torch.bfloat16)


def test_other_pipelines_over_the_components_have_the_stand_ins(pipe):
    host = PipelineHost(pipe, offload=IDLE)
    other = host.pipeline_for(OFF, pipeline_class=FluxImg2ImgPipeline)
    assert other.text_encoder_2 is host.pipe.text_encoder_2
    assert other.vae.place is host.pipe.vae.place
    assert architecture_of_pipe(host.pipe) == architecture_of_pipe(pipe)


# On the CPU, beside a model that is elsewhere. torch's device "meta" has shapes and no numbers, so it stands for a GPU
# where only the device of a tensor is of interest.


class Recording(nn.Module):
    """Keeps the devices of what it is given."""

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        self.devices = {each.device.type for each in (*args, *kwargs.values())}
        return {"hidden": torch.ones(2)}


def test_inputs_move_to_where_the_component_runs_and_results_to_the_model(make_flux):
    plain, meta = make_flux(), torch.device("meta")
    at_the_model = ComponentPlace(meta, CPU)
    encoder = Offloaded(plain.text_encoder_2, at_the_model)
    assert encoder.device == meta
    output = encoder(torch.tensor([[3, 4]]), output_hidden_states=True)
    assert {each.device for each in (output.last_hidden_state, *output.hidden_states)} == {meta}
    assert encoder(torch.tensor([[3, 4]]), return_dict=False)[0].device == meta
    encoded = Offloaded(plain.vae, at_the_model).encode(torch.rand(1, 3, 16, 16))
    assert encoded.latent_dist.mode().device == meta
    assert encoded.latent_dist.parameters.device == meta
    assert Offloaded(plain.vae, at_the_model).decoder.conv_in.weight.device == meta
    recording = Recording()
    Offloaded(recording, ComponentPlace(CPU, meta))(torch.ones(1), mask=torch.ones(1))
    assert recording.devices == {"meta"}


def test_on_a_cpu_the_components_that_run_there_need_no_stand_in(pipe):
    expected = picture(pipe)
    host = PipelineHost(pipe, offload=[("text_encoder_2", "cpu")])
    assert not isinstance(host.pipe.text_encoder_2, Offloaded)
    assert host.idle_bytes == 0
    assert np.array_equal(picture(host.pipeline_for(OFF)), expected)


# A GPU rounds otherwise than a CPU does: of the 256 levels that a picture has in the end, one or two.
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("way", ["cpu", "idle"])
def test_on_a_gpu_the_picture_is_that_of_the_plain_pipeline(make_flux, way):
    expected = picture(make_flux().to("cuda"))
    pipe = make_flux()
    for name in ("transformer", "text_encoder"):
        pipe.components[name].to("cuda")
    before = torch.cuda.memory_allocated()
    host = PipelineHost(pipe, offload=[("text_encoder_2", way), ("vae", way)])
    found = picture(host.pipeline_for(OFF))
    assert np.abs(found - expected).max() <= (0.0 if way == "idle" else 2 / 255)
    assert {each.device.type for each in pipe.text_encoder_2.parameters()} == {"cpu"}
    assert torch.cuda.memory_allocated() - before < weights_bytes(pipe.vae)


# What is refused


@pytest.mark.parametrize(
    ("offload", "message"),
    [
        (("transformer", "idle"), r"offload names 'transformer', must be an encoder or autoencoder of FluxPipeline: "),
        (("tokenizer", "cpu"), "offload names 'tokenizer', must be an encoder or autoencoder"),
        (("scheduler", "cpu"), "offload names 'scheduler', must be an encoder or autoencoder"),
        (("image_encoder", "idle"), "offload names 'image_encoder', must be"),  # of which there is none
        (("text_encoder_9", "idle"), "must be .*: vae, text_encoder, text_encoder_2$"),
        (("vae", "disk"), "offload of vae is 'disk', must be 'cpu' or 'idle'"),
    ],
)
def test_what_cannot_be_offloaded_is_named(pipe, offload, message):
    with pytest.raises(ValueError, match=message):
        PipelineHost(pipe, offload=[offload])


def test_a_component_is_named_once(pipe):
    with pytest.raises(ValueError, match="offload is vae, vae, must name each component once"):
        PipelineHost(pipe, offload=[("vae", "cpu"), ("vae", "idle")])


# Offloading that a user has hooked to encoders and autoencoder


def test_a_component_with_hooks_of_its_own_is_not_offloaded_twice(pipe):
    cpu_offload_with_hook(pipe.vae, execution_device="cpu")
    with pytest.raises(ValueError, match="offload names 'vae', which has hooks that offload it, must have none"):
        PipelineHost(pipe, offload=[("vae", "idle")])


@pytest.fixture
def leaves_on_disk(pipe: FluxPipeline, tmp_path: Path) -> Iterator[FluxPipeline]:
    """A pipeline whose CLIP encoder is offloaded by diffusers' hooks, leaf by leaf, which two calls at once break."""
    apply_group_offloading(
        pipe.text_encoder, onload_device="cpu", offload_type="leaf_level", offload_to_disk_path=str(tmp_path / "leaves")
    )
    return pipe


def test_calls_of_a_component_with_diffusers_hooks_go_one_at_a_time(leaves_on_disk):
    pipe, inside, most = leaves_on_disk, [0], [0]
    expected = [picture(pipe, prompt) for prompt in PROMPTS]
    layer = pipe.text_encoder.encoder.layers[0]

    def enter(*_: Any) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.005)

    layer.register_forward_pre_hook(enter)
    layer.register_forward_hook(lambda *_: inside.__setitem__(0, inside[0] - 1))
    host = PipelineHost(pipe)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda prompt: picture(host.pipeline_for(OFF), prompt), PROMPTS))
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    assert most == [1]


def test_hooked_components_wait_for_each_other(pipe):
    """accelerate's hook of one moves another: that of the autoencoder takes the encoder off the device."""
    _, before = cpu_offload_with_hook(pipe.text_encoder_2, execution_device="cpu")
    cpu_offload_with_hook(pipe.vae, execution_device="cpu", prev_module_hook=before)
    host = PipelineHost(pipe)
    encoder, vae = host.pipe.text_encoder_2, host.pipe.vae
    entered, go_on = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        entered.set()
        assert go_on.wait(30)

    pipe.text_encoder_2.encoder.block[0].register_forward_pre_hook(hold)
    with ThreadPoolExecutor(2) as pool:
        encoding = pool.submit(encoder, torch.tensor([[3]]))
        assert entered.wait(30)
        decoding = pool.submit(vae.decode, torch.rand(1, 4, 8, 8))
        time.sleep(0.1)
        assert not decoding.done()
        go_on.set()
        assert encoding.result(30).last_hidden_state.isfinite().all()
        assert decoding.result(30).sample.isfinite().all()


# A served model


def test_a_models_parameter_offloads_what_it_names(pipe, tmp_path):
    expected = picture(pipe)
    nbytes = weights_bytes(pipe.text_encoder_2)
    pipe.save_pretrained(tmp_path)
    source = PipelineSource(str(tmp_path), offload=(("text_encoder_2", "idle"), ("vae", "cpu")))
    config = ModelConfig.from_parameters({"pipeline": str(tmp_path), "engine": "torch"}, ROOT)
    config = replace(config, source=source)
    loaded = load_pipeline(source)
    host = PipelineHost.from_config(loaded, config)
    assert host.idle_bytes == nbytes
    assert np.array_equal(picture(host.pipeline_for(OFF)), expected)
    with pytest.raises(ValueError, match="offload names 'transformer', must be an encoder or autoencoder"):
        load_pipeline(PipelineSource(str(tmp_path), offload=(("transformer", "cpu"),)))
    assert isinstance(load_pipeline(source, denoisers_only=True).transformer, FluxTransformer2DModel)


def test_an_idle_encoder_frees_its_memory_but_for_the_time_of_its_calls(tmp_path):
    """The peak of a request that encodes its prompt is that of the model without offloading; one whose prompt is known
    has a peak that is lower by the encoder, of 200 MiB."""
    pipe = flux_with_large_encoder(tmp_path)
    nbytes = weights_bytes(pipe.text_encoder_2)
    slack = 0.15 * nbytes  # what else is allocated: the features of 16 tokens in a layer are 5 MiB, and several exist

    def measured(of: Callable[[], Any], prompt: str) -> tuple[np.ndarray, int, float]:
        served, peak, began = of(), PeakMemory(), time.perf_counter()
        return picture(served, prompt), peak.nbytes, time.perf_counter() - began

    host = PipelineHost(pipe)
    picture(host.pipeline_for(OFF))  # first calls allocate what stays
    expected, plain, plain_s = measured(lambda: host.pipeline_for(OFF), "a blue apple")
    host = PipelineHost(pipe, offload=[("text_encoder_2", "idle")], text_cache_bytes=2**20)
    idle = resident_bytes()
    found, encoding, encoding_s = measured(lambda: host.pipeline_for(OFF), "a blue apple")
    again, known, _ = measured(lambda: host.pipeline_for(OFF), "a blue apple")
    assert np.array_equal(found, expected)
    assert np.array_equal(again, expected)
    assert nbytes > 190 * 2**20
    assert plain - idle > nbytes - slack
    assert abs(plain - encoding) < slack
    assert plain - known > nbytes - slack
    assert encoding_s - plain_s < 1, "pages of a file that the system has in memory are mapped, not read"
