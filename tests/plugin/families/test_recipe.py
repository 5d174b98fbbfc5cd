"""The recipe for a family in docs/extending.md, followed: its code makes one that serves AuraFlow."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import DiffusionPipeline

from plugin.denoising.host import PipelineHost
from plugin.families import FAMILY_OF_TRANSFORMER, family_of
from plugin.families.images import AuraFlow
from plugin.families.standing_in import Blocks
from taylorseer import CacheConfig
from tests.support.documents import ROOT, blocks_of
from tests.support.tiny import Guidance, TinyFamily, block_inputs_of, latents_of
from tests.support.tiny.auraflow import tiny_auraflow
from tests.support.tiny.declared import DECLARED

DOCUMENT = ROOT / "docs/extending.md"
MODULE = "plugin.families.recipe"
OFF = CacheConfig(interval=1)
DECLARED_ATTRIBUTES = ("name", "lists", "kept", "embeds", "refiners", "patch", "joint", "layers", "batches_guidance")


class Recipe(NamedTuple):
    """The Python blocks of the recipe, and the axes that it says follow."""

    declaration: str
    line: str
    tiny: str
    axes: str


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    first, last = lines.index("## A family"), lines.index("## A pipeline of pictures")
    blocks = [block for block in blocks_of(DOCUMENT) if first < block.line < last]
    python = [block.text for block in blocks if block.language == "python"]
    *_, axes = [block.text for block in blocks if block.language == "text"]
    return Recipe(*python, axes)


@pytest.fixture
def family(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> TinyFamily:
    """The tiny pipeline of the recipe, whose transformer the declaration of the recipe serves from now on."""
    module = ModuleType(MODULE)
    exec(recipe.declaration, module.__dict__)
    ((transformer, name),) = ast.literal_eval(f"{{{recipe.line}}}").items()
    monkeypatch.setitem(sys.modules, MODULE, module)
    monkeypatch.setitem(FAMILY_OF_TRANSFORMER, transformer, (MODULE, name))
    names: dict[str, Any] = {"TinyFamily": TinyFamily, "Guidance": Guidance, "tiny_auraflow": tiny_auraflow}
    exec(recipe.tiny, names)
    return names["FAMILY"]


@pytest.fixture
def pipe(family: TinyFamily, tmp_path: Path) -> DiffusionPipeline:
    return family.make(tmp_path, torch.float32)


def arguments_of(family: TinyFamily, guidance: str) -> dict[str, Any]:
    return {**family.arguments, **family.sizes[0], **family.guidance[guidance].arguments}


def test_the_registry_finds_the_declaration_of_the_recipe(family, pipe):
    assert type(family_of(pipe.transformer)).__module__ == MODULE


def test_the_declaration_of_the_recipe_is_the_one_that_runs(family, pipe):
    shown, ours = type(family_of(pipe.transformer)), AuraFlow
    assert [getattr(shown, name) for name in DECLARED_ATTRIBUTES] == [
        getattr(ours, name) for name in DECLARED_ATTRIBUTES
    ]
    assert all(isinstance(each, Blocks) for each in shown.lists)


def test_the_tiny_pipeline_of_the_recipe_is_the_one_that_is_tested(recipe):
    assert recipe.tiny in (ROOT / "tests/support/tiny/auraflow.py").read_text(encoding="utf-8")
    assert "auraflow" in DECLARED


def test_with_the_cache_off_the_result_is_bit_for_bit_the_plain_pipelines(family, pipe):
    for guidance in family.guidance:
        arguments = arguments_of(family, guidance)
        served = PipelineHost(pipe).pipeline_for(OFF)
        assert torch.equal(latents_of(served, **arguments), latents_of(pipe, **arguments)), guidance
        assert served.transformer.session.engine_calls == 5


def test_with_the_cache_on_only_the_full_steps_call_the_engine(family, pipe):
    config, steps = CacheConfig(interval=3, order=1, warmup_steps=2), 8
    arguments, host = arguments_of(family, "batched"), PipelineHost(pipe)
    off, on = host.pipeline_for(OFF), host.pipeline_for(config)
    computed, forecast = (latents_of(each, steps=steps, **arguments) for each in (off, on))
    assert off.transformer.session.engine_calls == steps
    assert on.transformer.session.engine_calls == len(config.full_steps(steps)) < steps
    # forecasts of these random weights are 5 % off; test_declared.py compares them with the recursion itself
    assert 0 < (computed - forecast).norm() / computed.norm() < 0.3


def test_the_axes_follow_that_the_recipe_shows(recipe, family, pipe):
    served = family_of(pipe.transformer)
    shown = {name: axes.split(", ") for name, axes in (line.split(maxsplit=1) for line in recipe.axes.splitlines())}
    assert shown == {
        name: [served.block_axes[name].get(axis, str(length)) for axis, length in enumerate(example.shape)]
        for name, example in served.example_inputs().items()
    }


def test_the_sizes_follow_that_plans_need(family, pipe):
    for size in family.sizes:
        served, inputs = block_inputs_of(family, pipe, {**arguments_of(family, "none"), **size})
        shape = served.feature_shape(pipe.transformer.config, family.latent_size(pipe, size))
        assert inputs["hidden_states"].shape[1:] == shape
