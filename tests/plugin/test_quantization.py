"""What is checked of quantised weights before anything is loaded: components, GGUF files, engines, LoRA."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin.config import ModelConfig
from plugin.engine_specs import ENGINES
from plugin.repository import InvalidConfig


def configured(folder: Path, **parameters: str) -> ModelConfig:
    return ModelConfig.from_parameters({"pipeline": "org/model", "engine": "torch", **parameters}, folder)


def test_transformers_and_text_encoders_can_be_quantised(tmp_path):
    config = configured(tmp_path, quantization="transformer=int8, transformer_2=fp8, text_encoder_3=nf4")
    assert config.source.quantization == (("transformer", "int8"), ("transformer_2", "fp8"), ("text_encoder_3", "nf4"))


@pytest.mark.parametrize("name", ["vae", "scheduler", "tokenizer", "tokenizer_2", "image_encoder", "text_encoders"])
def test_components_without_linear_layers_are_refused(tmp_path, name):
    message = (
        rf"parameter 'quantization' is '{name}=int8', must be of components of linear layers: transformer, "
        rf"transformer_2, text_encoder, text_encoder_2 and so on, not of {name}$"
    )
    with pytest.raises(InvalidConfig, match=message):
        configured(tmp_path, quantization=f"{name}=int8")


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(InvalidConfig, match="is 'transformer=int4', must be one of int8, fp8, nf4 for transformer"):
        configured(tmp_path, quantization="transformer=int4")


def test_a_component_is_quantised_in_one_way(tmp_path):
    with pytest.raises(InvalidConfig, match="is 'transformer=int8, transformer=fp8', must name transformer once"):
        configured(tmp_path, quantization="transformer=int8, transformer=fp8")


@pytest.mark.parametrize("engine", [name for name, spec in ENGINES.items() if not spec.takes_quantized])
@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"quantization": "text_encoder=nf4, transformer=int8"}, "transformer in parameter 'quantization'"),
        ({"quantization": "transformer_2=fp8"}, "transformer_2 in parameter 'quantization'"),
        ({"components": "transformer=/a.gguf"}, "a GGUF file for transformer in parameter 'components'"),
    ],
    ids=["quantization", "second", "gguf"],
)
def test_engines_with_a_form_of_the_blocks_of_their_own_refuse_quantised_ones(tmp_path, engine, parameters, named):
    more = {"sequence_parallel": "2"} if ENGINES[engine].is_parallel else {}
    if ENGINES[engine].needs_server:
        (tmp_path / "blocks").mkdir()
        (tmp_path / "blocks/config.pbtxt").write_text("max_batch_size: 1")
        more = {"engine_model": "blocks"}
    with pytest.raises(
        InvalidConfig, match=f"parameter 'engine' is '{engine}', must be torch with {named}: {engine} "
    ) as e:
        configured(tmp_path / "model", engine=engine, **more, **parameters)
    own_fp8 = f"TensorRT's own fp8 is the engine {engine}-fp8"
    assert (own_fp8 in str(e.value)) == (engine in ("tensorrt", "tensorrt-rtx"))


def test_every_engine_takes_quantised_encoders(tmp_path):
    for engine, spec in ENGINES.items():
        if not spec.needs_server:
            more = {"sequence_parallel": "2"} if spec.is_parallel else {}
            config = configured(tmp_path, engine=engine, quantization="text_encoder=nf4", **more)
            assert config.source.quantization == (("text_encoder", "nf4"),)


def test_torch_takes_quantised_blocks():
    assert [name for name, spec in ENGINES.items() if spec.takes_quantized] == ["torch"]


@pytest.mark.parametrize("name", ["text_encoder", "vae"])
def test_gguf_files_are_for_transformers(tmp_path, name):
    with pytest.raises(InvalidConfig, match=f"'components' has a GGUF file for {name}, must have a hub id or a folder"):
        configured(tmp_path, components=f"{name}=/a.gguf")


def test_a_gguf_file_has_its_own_quantisation(tmp_path):
    with pytest.raises(InvalidConfig, match="must be without transformer: its GGUF file in 'components' has its own"):
        configured(tmp_path, components="transformer=org/model/a.GGUF", quantization="transformer=int8")


def test_no_lora_is_fused_into_a_gguf_file(tmp_path):
    with pytest.raises(InvalidConfig, match="'lora' is 'org/lora', must be left out with the GGUF file of transformer"):
        configured(tmp_path, components="transformer=/a.gguf", lora="org/lora")


def test_components_beside_the_model_are_found_there(tmp_path):
    config = configured(tmp_path / "model", components="transformer=../a.gguf, vae=org/vae")
    assert config.source.components == (("transformer", str(tmp_path / "a.gguf")), ("vae", "org/vae"))
