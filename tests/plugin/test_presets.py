"""Saved cache presets: written by name, read with the model, refused where the file is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plugin.config import ModelConfig
from plugin.presets import presets_path, save_preset, saved_presets
from plugin.repository import InvalidConfig
from plugin.request import InvalidRequest
from plugin.serving.plan import example_request
from taylorseer import CacheConfig, LearntRun, LearntWeights


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


LEARNT = LearntWeights(
    (
        LearntRun(5, (0, 2), ((1.0,), (1.5,), (-0.25, 1.25), (0.1, 1e-07)), noise=2.5),
        LearntRun(9, (0, 4), (*((1.0,),) * 4, *((0.5, 0.5),) * 4)),
    ),
    "0123456789abcdef",
)
CACHE = CacheConfig(order=1, predictor="learnt", schedule="0 2 of 5", learnt=LEARNT)


def saved(path: Path) -> dict[str, Any]:
    """A file with a plain preset and a learnt one, and what is in it."""
    save_preset(path, "plain", CacheConfig(order=3), {})
    save_preset(path, "tuned-2", CACHE, {"psnr": 31.25, "date": "2026-01-02"})
    return json.loads(path.read_text())


def test_learnt_weights_are_read_as_they_were_saved(tmp_path):
    written = saved(tmp_path / "cache_presets.json")
    assert saved_presets(tmp_path / "cache_presets.json") == {"plain": CacheConfig(order=3), "tuned-2": CACHE}
    assert written["tuned-2"]["about"] == {"psnr": 31.25, "date": "2026-01-02"}
    assert "learnt" not in written["plain"]
    assert "learnt" not in written["tuned-2"]["cache"]
    assert hash(saved_presets(tmp_path / "cache_presets.json")["tuned-2"]) == hash(CACHE), "sessions look rows up"


def test_each_list_of_numbers_has_a_line_and_texts_stay_as_they_are(tmp_path):
    path = tmp_path / "cache_presets.json"
    save_preset(path, "a [1,  2]", CACHE, {"engine": "[ 3  4 ]"})
    assert saved_presets(path) == {"a [1,  2]": CACHE}
    assert json.loads(path.read_text())["a [1,  2]"]["about"] == {"engine": "[ 3  4 ]"}
    assert any("-0.25, 1.25" in line for line in path.read_text().splitlines())


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> str:
    """The error of a file in which the learnt preset was changed."""
    presets = saved(path)
    change(presets["tuned-2"])
    path.write_text(json.dumps(presets))
    with pytest.raises(InvalidConfig) as caught:
        saved_presets(path)
    return str(caught.value)


def first_run(preset: dict[str, Any]) -> dict[str, Any]:
    return preset["learnt"]["runs"][0]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda preset: preset["learnt"].update(version=2), "version of its learnt weights is 2, must be 1: tune it"),
        (lambda preset: preset["learnt"].pop("version"), "'version' is missing"),
        (lambda preset: preset["learnt"].pop("fingerprint"), "'fingerprint' is missing"),
        (lambda preset: preset["learnt"].pop("runs"), "'runs' is missing"),
        (lambda preset: preset["learnt"].update(runs=[]), "runs has the numbers of steps [], must be at least one"),
        (lambda preset: preset.pop("cache"), "'cache' is missing"),
        (lambda preset: preset.pop("learnt"), "predictor is 'learnt', must be one of: taylor"),
        (lambda preset: first_run(preset).pop("rows"), "'rows' is missing"),
        (lambda preset: first_run(preset).pop("full_steps"), "'full_steps' is missing"),
        (lambda preset: first_run(preset)["rows"].pop(), "rows has 3 entries, must have 4, one a step from 1 on"),
        (lambda preset: first_run(preset)["rows"][1].__setitem__(0, "much"), "could not convert string to float"),
        (lambda preset: first_run(preset)["rows"][1].__setitem__(0, None), "must be a string or a real number"),
        (lambda preset: first_run(preset)["rows"].__setitem__(1, 3.0), "'float' object is not iterable"),
        (lambda preset: first_run(preset)["rows"][1].__setitem__(0, float("inf")), "row of step 2 is [inf], must be"),
        (lambda preset: first_run(preset).update(num_steps="5"), "not supported between instances of 'str' and 'int'"),
        (lambda preset: preset["cache"].update(order=2), "order is 2, must be 1, which the weights were learnt for"),
        (lambda preset: preset["cache"].update(schedule="0 3 of 5"), "schedule is '0 3 of 5', must have the full st"),
        (lambda preset: preset["cache"].update(learnt={}), "got multiple values for keyword argument 'learnt'"),
    ],
)
def test_what_is_wrong_with_a_saved_preset_is_named_with_its_file_and_its_name(tmp_path, change, why):
    path = tmp_path / "cache_presets.json"
    error = changed(path, change)
    assert error.startswith(f"{path} cannot be read, must be as `triton-taylorseer tune` writes it: preset 'tuned-2': ")
    assert why in error
    assert "\n" not in error


def test_a_number_that_no_float_holds_is_named_too(tmp_path):
    path = tmp_path / "cache_presets.json"
    error = changed(path, lambda preset: first_run(preset)["rows"][1].__setitem__(0, 10**400))
    assert "preset 'tuned-2'" in error


def test_a_file_that_was_cut_off_is_named_wherever_it_ends(tmp_path):
    path = tmp_path / "cache_presets.json"
    saved(path)
    text = path.read_text().rstrip()
    for length in range(0, len(text), 40):
        path.write_text(text[:length])
        with pytest.raises(InvalidConfig, match=r"cache_presets.json cannot be read, must be as .* writes it"):
            saved_presets(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("predictor=learnt", "predictor is 'learnt', must be one of: taylor, .*; learnt weights come with a preset"),
        ("learnt=weights.json", "'learnt' is unknown, must be one of: cooldown_steps, coordinate, "),
    ],
)
def test_a_preset_of_a_models_configuration_cannot_have_learnt_weights(tmp_path, text, why):
    with pytest.raises(InvalidConfig, match=rf"parameter 'cache_preset_mine' is '{text}': {why}"):
        ModelConfig.from_parameters({"pipeline": "hub/id", "cache_preset_mine": text}, tmp_path)
    with pytest.raises(InvalidConfig, match="parameter cache_predictor is 'learnt', must be one of: taylor"):
        ModelConfig.from_parameters({"pipeline": "hub/id", "cache_predictor": "learnt"}, tmp_path)


def test_a_request_may_change_a_learnt_preset_where_the_weights_still_hold(tmp_path):
    saved(tmp_path / "cache_presets.json")
    config = ModelConfig.from_parameters({"pipeline": "hub/id"}, tmp_path)

    def cache_of(**fields: Any) -> CacheConfig:
        return example_request(config, prompt="a", cache_preset="tuned-2", **fields).cache

    assert cache_of() == CACHE
    assert cache_of(cache_interval=1) == replace(CACHE, interval=1)
    assert cache_of(cache_predictor="newton", cache_order=4) == replace(CACHE, predictor="newton", order=4)
    with pytest.raises(InvalidRequest, match="cache_order is 4, must be 1, which the weights were learnt for"):
        cache_of(cache_order=4)
    with pytest.raises(InvalidRequest, match="cache_predictor is 'learnt', must be one of: taylor"):
        example_request(config, prompt="a", cache_predictor="learnt")
