"""A model's parameters, parsed once."""

from pathlib import Path

import pytest

from plugin.config import ModelConfig, PipelineSource
from plugin.repository import InvalidConfig
from plugin.request import parse_request
from taylorseer import CacheConfig
from tests.support.paths import REPOSITORY


def test_emoji_parameters_are_read_from_its_config():
    config = ModelConfig.from_folder(REPOSITORY / "emoji_stream")
    assert config.source.pipeline == str(REPOSITORY / "emoji/1/pipeline")
    assert config.engine == "onnxruntime"
    assert (config.defaults.height, config.defaults.width) == (64, 64)
    assert isinstance(config.defaults.cache, CacheConfig)


def test_a_hub_id_stays_as_it_is():
    assert ModelConfig.from_parameters({"pipeline": "org/model"}, Path("/models/x")).source.pipeline == "org/model"


def test_a_container_overrides_a_models_parameters_by_environment():
    environment = {
        "TAYLORSEER_FLUX_DEV_PIPELINE": "/models/flux",
        "TAYLORSEER_FLUX_DEV_MAX_IN_FLIGHT": "3",
        "TAYLORSEER_EMOJI_PIPELINE": "not this one",
    }
    config = ModelConfig.from_parameters({"pipeline": "a/b"}, Path("/repository/flux_dev_stream"), environment)
    assert (config.source.pipeline, config.max_in_flight) == ("/models/flux", 3)
    elsewhere = ModelConfig.from_parameters({"pipeline": "a/b"}, Path("/tmp/x"), environment, model="flux_dev_stream")
    assert elsewhere == config


def test_what_a_pipeline_is_made_of_is_read():
    parameters = {
        "pipeline": "a/b",
        "dtype": "bfloat16",
        "component_dtypes": "vae=float32, text_encoder=float16",
        "components": "text_encoder_4=meta/llama, tokenizer_4=meta/llama",
        "lora": "./lora",
        "lora_scale": "0.5",
    }
    assert ModelConfig.from_parameters(parameters, Path("/models/x")).source == PipelineSource(
        "a/b",
        dtype="bfloat16",
        component_dtypes=(("vae", "float32"), ("text_encoder", "float16")),
        components=(("text_encoder_4", "meta/llama"), ("tokenizer_4", "meta/llama")),
        lora="/models/x/lora",
        lora_scale=0.5,
    )


def test_presets_are_read_by_name():
    parameters = {"pipeline": "a/b", "cache_preset_paper": "interval=6, order=2, warmup_steps=1"}
    presets = ModelConfig.from_parameters(parameters, Path()).presets
    assert presets == {"default": CacheConfig(), "paper": CacheConfig(interval=6, order=2, warmup_steps=1)}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "parameter 'pipeline' is missing"),
        ({"pipeline": "./nowhere"}, r"parameter 'pipeline' is '\./nowhere', must be a folder beside the model's"),
        (
            {"pipeline": "a/b", "colour": "red"},
            "parameter 'colour' is unknown, must be one of: allow_pickle, cache_cooldown_steps",
        ),
        (
            {"pipeline": "a/b", "max_in_flight": "0"},
            "parameter 'max_in_flight' is '0', must be an integer of at least 1",
        ),
        (
            {"pipeline": "a/b", "engine_lanes": "2", "device": "cuda"},
            "parameter 'engine_lanes' is 2, must be 1 on cuda",
        ),
        ({"pipeline": "a/b", "height": "tall"}, "parameter 'height' is 'tall', must be an integer"),
        ({"pipeline": "a/b", "takes_prompt": "yes"}, "parameter 'takes_prompt' is 'yes', must be true or false"),
        ({"pipeline": "a/b", "dtype": "int8"}, "parameter 'dtype' is 'int8', must be one of: float32"),
        ({"pipeline": "a/b", "guidance_scale": "much"}, "parameter 'guidance_scale' is 'much', must be a number"),
        ({"pipeline": "a/b", "cache_order": "12"}, "parameter cache_order is 12, must be an integer from 0 to 8"),
        ({"pipeline": "a/b", "components": "vae"}, "parameter 'components' is 'vae', must be name=value pairs"),
        ({"pipeline": "a/b", "component_dtypes": "vae=int8"}, "'vae=int8', must be one of: float32, bfloat16, float16"),
        ({"pipeline": "a/b", "cache_preset_fast": "pace=6"}, "'pace=6': 'pace' is unknown, must be one of: cooldown"),
        ({"pipeline": "a/b", "cache_preset_fast": "order=12"}, "'order=12': order is 12, must be an integer from 0"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(InvalidConfig, match=message):
        ModelConfig.from_parameters(parameters, Path())


def test_a_folder_without_a_config_is_named(tmp_path):
    with pytest.raises(InvalidConfig, match=r"config\.pbtxt is missing"):
        ModelConfig.from_folder(tmp_path)


def test_a_config_that_is_none_is_named(tmp_path):
    (tmp_path / "config.pbtxt").write_text("name: {")
    with pytest.raises(InvalidConfig, match="cannot be read"):
        ModelConfig.from_folder(tmp_path)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in REPOSITORY.glob("*_stream/config.pbtxt")))
def test_every_shipped_model_is_a_pair_with_a_paper_preset_and_valid_defaults(name):
    config = ModelConfig.from_folder(REPOSITORY / name)
    assert (REPOSITORY / name.removesuffix("_stream") / "config.pbtxt").is_file()
    assert {"default", "paper"} <= set(config.presets)
    subject = {"prompt": b"a cat"} if config.limits.takes_prompt else {"class_label": 1}
    defaults = config.defaults
    size = {"height": defaults.height, "width": defaults.width, "num_frames": defaults.num_frames}
    assert parse_request({**subject, **size}, defaults, config.limits, 0).cache == defaults.cache
