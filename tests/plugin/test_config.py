"""A model's parameters, parsed once."""

from pathlib import Path

import pytest

from plugin.config import InvalidConfig, ModelConfig
from taylorseer import CacheConfig

REPOSITORY = Path(__file__).parents[2] / "model_repository"


def test_emoji_parameters_are_read_from_its_config():
    config = ModelConfig.from_folder(REPOSITORY / "emoji_stream")
    assert config.pipeline == str(REPOSITORY / "emoji/1/pipeline")
    assert config.engine == "onnxruntime"
    assert (config.defaults.height, config.defaults.width) == (64, 64)
    assert isinstance(config.defaults.cache, CacheConfig)


def test_a_hub_id_stays_as_it_is():
    assert ModelConfig.from_parameters({"pipeline": "org/model"}, Path("/models/x")).pipeline == "org/model"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "parameter 'pipeline' is missing"),
        ({"pipeline": "a/b", "colour": "red"}, "parameter 'colour' is unknown, must be one of: cache_cooldown_steps"),
        (
            {"pipeline": "a/b", "max_in_flight": "0"},
            "parameter 'max_in_flight' is '0', must be an integer of at least 1",
        ),
        ({"pipeline": "a/b", "height": "tall"}, "parameter 'height' is 'tall', must be an integer"),
        ({"pipeline": "a/b", "takes_prompt": "yes"}, "parameter 'takes_prompt' is 'yes', must be true or false"),
        ({"pipeline": "a/b", "dtype": "int8"}, "parameter 'dtype' is 'int8', must be one of: float32"),
        ({"pipeline": "a/b", "guidance_scale": "much"}, "parameter 'guidance_scale' is 'much', must be a number"),
        ({"pipeline": "a/b", "cache_order": "12"}, "parameter cache_order is 12, must be an integer from 0 to 8"),
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
