"""Saved cache presets: written by name, read with the model, refused where the file is damaged."""

import json

import pytest

from plugin.config import ModelConfig
from plugin.presets import presets_path, save_preset
from plugin.repository import InvalidConfig
from taylorseer import CacheConfig


def test_presets_are_kept_by_name_and_read_with_the_model(tmp_path):
    model, weights = tmp_path / "tiny_stream", tmp_path / "weights"
    model.mkdir()
    weights.mkdir()
    path = presets_path(str(weights), model)
    assert path.parent == weights
    assert presets_path("someone/else", model).parent == model, "weights of a hub"
    first, second = CacheConfig(order=2, schedule="0 4 of 9"), CacheConfig(predictor="newton", schedule="0 1 of 9")
    save_preset(path, "a", first, {"psnr": 1.0})
    save_preset(path, "b", first, {})
    save_preset(path, "b", second, {})
    parameters = {"pipeline": str(weights), "cache_preset": "b"}
    config = ModelConfig.from_parameters(parameters, model)
    assert config.presets == {"default": CacheConfig(), "a": first, "b": second}
    assert config.defaults.cache == second
    assert json.loads(path.read_text())["a"]["about"] == {"psnr": 1.0}
    assert not list(weights.glob("*.unfinished"))
    with pytest.raises(InvalidConfig, match="parameter 'cache_preset' is 'c', must be one of: default, a, b"):
        ModelConfig.from_parameters(parameters | {"cache_preset": "c"}, model)
    for text in ("{", "[]", '{"a": {}}', '{"a": {"cache": {"pace": 3}}}', '{"a": {"cache": {"order": 12}}}'):
        path.write_text(text)
        with pytest.raises(InvalidConfig, match=r"cache_presets.json cannot be read, must be as .* writes it"):
            ModelConfig.from_parameters(parameters, model)
