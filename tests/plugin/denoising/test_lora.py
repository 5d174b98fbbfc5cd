"""LoRA weights fused at load: part of the pipeline and of the engine's key."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from plugin.config import PipelineSource
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline
from plugin.engines.export import stack_key
from plugin.families import family_of
from taylorseer import CacheConfig
from tests.support.tiny import FAMILIES, latents_of

OFF = CacheConfig(interval=1)
TARGETS = {"flux": ["to_q", "to_v"], "wan": ["to_q", "to_v"]}


@pytest.fixture(scope="module", params=TARGETS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A family's name, and a folder with its tiny pipeline and LoRA weights for it."""
    folder, name = tmp_path_factory.mktemp("lora"), request.param
    pipe = FAMILIES[name].make(tmp_path_factory.mktemp(name), torch.float32)
    pipe.save_pretrained(folder / "pipeline")
    torch.manual_seed(1)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=TARGETS[name], init_lora_weights=False))
    type(pipe).save_lora_weights(folder / "lora", transformer_lora_layers=get_peft_model_state_dict(pipe.transformer))
    return name, folder


def source(folder: Path, *, lora: bool, scale: float = 1.0) -> PipelineSource:
    return PipelineSource(str(folder / "pipeline"), lora=str(folder / "lora") if lora else None, lora_scale=scale)


def run(name: str, pipe: object) -> torch.Tensor:
    family = FAMILIES[name]
    return latents_of(pipe, **family.arguments, **family.sizes[0])


def test_a_fused_lora_is_served_as_diffusers_applies_it(saved):
    name, folder = saved
    plain = load_pipeline(source(folder, lora=False))
    without = run(name, plain)
    plain.load_lora_weights(folder / "lora")
    expected = run(name, plain)
    served = run(name, PipelineHost(load_pipeline(source(folder, lora=True))).pipeline_for(OFF))
    assert (expected - without).abs().max() > 1e-3 * expected.abs().max(), "the LoRA must do something"
    # fused into the weights against added beside them: float32 sums in another order
    assert (served - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_lora_weights_and_their_scale_decide_the_engine(saved):
    _, folder = saved
    sources = [source(folder, lora=False), source(folder, lora=True), source(folder, lora=True, scale=0.5)]
    families = [family_of(load_pipeline(each).transformer) for each in [*sources, sources[1]]]
    keys = [stack_key(family, family.export_stack()) for family in families]
    assert len(set(keys[:3])) == 3
    assert keys[3] == keys[1]


def test_a_lora_that_cannot_be_had_is_named(saved):
    _, folder = saved
    missing = PipelineSource(str(folder / "pipeline"), lora=str(folder / "nowhere"))
    with pytest.raises(OSError, match=rf"lora {folder / 'nowhere'} cannot be had"):
        load_pipeline(missing)
