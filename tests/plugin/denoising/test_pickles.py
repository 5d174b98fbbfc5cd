"""Weights that are pickles, and code beside weights: refused unless a parameter allows the former."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from plugin.config import PipelineSource
from plugin.denoising.loading import load_pipeline
from tests.support.tiny import FAMILIES, latents_of

FLUX = {**FAMILIES["flux"].arguments, **FAMILIES["flux"].sizes[0]}


@pytest.fixture
def saved(make_flux: Callable[[], FluxPipeline], tmp_path: Path) -> Path:
    make_flux().save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def pickled(saved: Path, component: str) -> None:
    """Replaces a component's safetensors by a pickle of the same weights."""
    from safetensors.torch import load_file

    (path,) = (saved / component).glob("*.safetensors")
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


@pytest.mark.parametrize("component", ["transformer", "vae"])
def test_pickles_are_refused_and_served_where_they_are_allowed(saved: Path, component: str) -> None:
    expected = latents_of(load_pipeline(PipelineSource(str(saved))), **FLUX)
    pickled(saved, component)
    with pytest.raises(OSError, match=f"pipeline {saved} has weights that are pickles, must be safetensors: convert"):
        load_pipeline(PipelineSource(str(saved)))
    allowed = load_pipeline(PipelineSource(str(saved), allow_pickle=True))
    assert torch.equal(latents_of(allowed, **FLUX), expected)


def test_a_pickle_that_runs_code_does_not_run_it_even_where_pickles_are_allowed(saved: Path, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, (f"open({str(tmp_path / 'harm')!r}, 'w')",))

    pickled(saved, "transformer")
    torch.save({"x": Harm()}, saved / "transformer/diffusion_pytorch_model.bin")
    with pytest.raises(Exception):  # noqa: B017, PT011 - torch's own
        load_pipeline(PipelineSource(str(saved), allow_pickle=True))
    assert not (tmp_path / "harm").exists()


def test_a_lora_that_is_a_pickle_is_refused(saved: Path, make_flux: Callable[[], FluxPipeline], tmp_path: Path) -> None:
    pipe = make_flux()
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    layers = get_peft_model_state_dict(pipe.transformer)
    FluxPipeline.save_lora_weights(tmp_path / "lora", transformer_lora_layers=layers, safe_serialization=False)
    source = PipelineSource(str(saved), lora=str(tmp_path / "lora"))
    with pytest.raises(OSError, match=r"lora .*lora (has weights that are pickles|cannot be had)"):
        load_pipeline(source)


def test_code_beside_weights_is_not_loaded(saved: Path, tmp_path: Path) -> None:
    (saved / "own.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\nclass Own: pass\n")
    index = json.loads((saved / "model_index.json").read_text())
    index["_class_name"] = ["own", "Own"]
    (saved / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(Exception, match="trust_remote_code"):
        load_pipeline(PipelineSource(str(saved)))
    assert not (tmp_path / "harm").exists()
