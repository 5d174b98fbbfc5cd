"""A block stack as a model of its own: how tensors travel, which requests share an engine call, what can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import triton_to_np_dtype

from plugin.config import EngineModel, ModelConfig
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline, only_denoiser
from plugin.engines import make_engine
from plugin.engines.base import EngineError
from plugin.engines.block_stack import BlockStack, with_batch_axis
from plugin.engines.packing import is_shared
from plugin.engines.triton_engine import EngineUnavailable, TritonEngine
from plugin.families import family_of
from plugin.families.base import BlockInputs, Family
from plugin.ops.installation import Installation
from plugin.ops.server import ServerConfig, ServerError, check, command, free_ports
from plugin.repository import InvalidConfig
from taylorseer import CacheConfig
from tests.support.paths import ROOT
from tests.support.tiny import FAMILIES, latents_of

EXAMPLE = ROOT / "examples/engine_triton"
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}  # float32 sums in another order at another batch size


class Recorder:
    """An engine that notes the rows of each call and writes into the same memory each time, as one may."""

    name = "recorder"

    def __init__(self, family: Family, break_at_tokens: int = -1) -> None:
        self._stack = family.block_stack()
        self._break_at = break_at_tokens
        self._memory: dict[torch.Size, torch.Tensor] = {}
        self.rows: list[int] = []

    def run(self, inputs: BlockInputs, out: torch.Tensor | None = None) -> torch.Tensor:
        rows, tokens, _ = inputs["hidden_states"].shape
        self.rows.append(rows)
        if tokens == self._break_at:
            raise RuntimeError("the engine broke on purpose")
        with torch.no_grad():
            features = self._stack(**inputs)
        return self._memory.setdefault(features.shape, torch.empty_like(features)).copy_(features)


@pytest.fixture(scope="module")
def family(flux) -> Family:
    return family_of(flux.transformer)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    return lambda name: FAMILIES[name].make(tmp_path_factory.mktemp(name), torch.float32)


def blocks(seed: int, height: int, width: int, rows: int = 1) -> BlockInputs:
    """Arguments of the tiny FLUX' block stack for height x width image tokens, with tables that differ between them."""
    generator = torch.Generator().manual_seed(seed)
    tokens, text = height * width, 5
    angles = torch.cat([torch.zeros(text), torch.arange(tokens) // width + 0.1 * (torch.arange(tokens) % width)])
    table = angles[:, None] * torch.linspace(0.1, 1, 16)
    return {
        "hidden_states": torch.randn(rows, tokens, 32, generator=generator),
        "encoder_hidden_states": torch.randn(rows, text, 32, generator=generator),
        "temb": torch.randn(rows, 32, generator=generator),
        "rotary_cos": table.cos(),
        "rotary_sin": table.sin(),
    }


def as_received(family: Family, inputs: BlockInputs) -> BlockInputs:
    """What a batching model gets: `reshape` in its configuration makes (B, 1) to (B,) where the stack wants that."""
    numbers = {name for name, tensor in inputs.items() if tensor.ndim == 1 and not is_shared(family, name)}
    given = with_batch_axis(family, inputs)
    return {name: tensor[:, 0] if name in numbers else tensor for name, tensor in given.items()}


def gathered(family: Family, *requests: BlockInputs) -> list[BlockInputs]:
    return [as_received(family, each) for each in requests]


# The model that is called


@pytest.mark.parametrize("name", FAMILIES)
def test_a_request_alone_is_bit_for_bit_the_engine_in_process(pipelines, name):
    family = family_of(getattr(pipelines(name), FAMILIES[name].transformer))
    engine, inputs = make_engine("torch", family), family.example_inputs()
    sent = with_batch_axis(family, inputs)
    assert {len(tensor) for tensor in sent.values()} == {2}, "Triton wants one batch size in all inputs of a request"
    assert all(tensor.ndim >= 2 for tensor in sent.values()), "and an axis behind it"
    with torch.no_grad():
        (features,) = BlockStack(family, engine).run(gathered(family, inputs))
        assert torch.equal(features, engine.run(inputs))


def test_requests_of_equal_content_of_shared_inputs_share_a_call_and_others_do_not(family):
    wide, tall, small = (2, 6), (6, 2), (2, 2)
    requests = [
        blocks(1, *wide),
        blocks(2, *tall),  # as many tokens, other tables
        blocks(3, *wide, rows=2),
        blocks(4, *small),
        blocks(5, *wide),
        blocks(6, *tall),
    ]
    engine = Recorder(family)
    results = BlockStack(family, engine).run(gathered(family, *requests))
    assert engine.rows == [4, 2, 1]
    for inputs, features in zip(requests, results, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(features, family.block_stack()(**inputs), **ROUNDING)


def test_the_tables_of_another_size_would_have_changed_the_features(family):
    """What the comparison of contents is for: the same request with the other size's tables is far from itself."""
    wide, tall = blocks(1, 2, 6), blocks(1, 6, 2)
    with torch.no_grad():
        right, wrong = (family.block_stack()(**each) for each in (wide, wide | {"rotary_cos": tall["rotary_cos"]}))
    assert (right - wrong).abs().max() > 100 * ROUNDING["atol"]


def test_tables_that_differ_in_one_number_keep_requests_apart(family):
    first, second = blocks(1, 2, 6), blocks(2, 2, 6)
    second["rotary_sin"][-1, -1] += 1e-6
    engine = Recorder(family)
    BlockStack(family, engine).run(gathered(family, first, second))
    assert engine.rows == [1, 1]


def test_an_error_of_one_engine_call_leaves_the_others_alone(family):
    requests = [blocks(1, 2, 6), blocks(2, 3, 3), blocks(3, 2, 6), blocks(4, 2, 2)]
    engine = Recorder(family, break_at_tokens=12)
    results = BlockStack(family, engine).run(gathered(family, *requests))
    assert [str(results[i]) for i in (0, 2)] == ["RuntimeError: the engine broke on purpose"] * 2
    for i in (1, 3):
        with torch.no_grad():
            torch.testing.assert_close(results[i], family.block_stack()(**requests[i]), **ROUNDING)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": torch.zeros(1)}, "input 'colour' is unknown, must be one of: hidden_states, encoder_hidden_states"),
        ({"temb": torch.zeros(1, 1, 32)}, "input temb has 3 axes of torch.float32, must have 2 of torch.float32"),
        (
            {"temb": torch.zeros(1, 32).half()},
            "input temb has 2 axes of torch.float16, must have 2 of torch.float32",
        ),
        (
            {"rotary_cos": torch.arange(2)[:, None, None] * torch.ones(2, 17, 16)},
            "input rotary_cos differs between the rows of a request, must be the same in all",
        ),
    ],
)
def test_a_request_that_is_no_call_of_the_stack_is_refused_alone(family, change, message):
    bad, good = gathered(family, blocks(1, 2, 6), blocks(2, 2, 6))
    engine = Recorder(family)
    refused, features = BlockStack(family, engine).run([{**bad, **change}, good])
    assert isinstance(refused, EngineError)
    assert message in str(refused)
    assert features.shape == (1, 12, 32)
    assert engine.rows == [1]


# The engine that calls it


class Called:
    """A model of Triton without Triton: what it was given, and its answer."""

    def __init__(self, answer: Callable[[BlockInputs], torch.Tensor]) -> None:
        self._answer = answer
        self.calls: list[tuple[str, BlockInputs]] = []

    def __call__(self, model: str, inputs: BlockInputs) -> torch.Tensor:
        assert all(tensor.is_contiguous() for tensor in inputs.values())
        self.calls.append((model, inputs))
        return self._answer(inputs)


def fail(error: Exception) -> Callable[[BlockInputs], torch.Tensor]:
    def answer(inputs: BlockInputs) -> torch.Tensor:
        raise error

    return answer


def test_arguments_go_as_they_are_to_a_model_without_a_batch_axis(family):
    called = Called(lambda inputs: inputs["hidden_states"] + 1)
    inputs = blocks(1, 2, 6, rows=2)
    out = torch.empty_like(inputs["hidden_states"])
    assert TritonEngine(family, called, "plan", batched=False).run(inputs, out) is out
    assert torch.equal(out, inputs["hidden_states"] + 1)
    ((model, given),) = called.calls
    assert model == "plan"
    assert all(torch.equal(given[name], inputs[name]) for name in inputs)


def test_a_result_is_memory_of_its_own(family):
    memory = torch.ones(1, 12, 32)
    features = TritonEngine(family, Called(lambda inputs: memory), "plan", batched=True).run(blocks(1, 2, 6))
    memory.zero_()
    assert features.min() == 1


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (fail(EngineError("out of memory")), EngineError, "model plan, which runs the block stack: out of memory"),
        (fail(EngineUnavailable("not ready")), EngineUnavailable, "model plan, which runs the block stack: not ready"),
        (lambda inputs: torch.zeros(1, 3), EngineError, r"\[1, 3\] of torch.float32, must be \[1, 12, 32\] of torch.f"),
        (lambda inputs: inputs["hidden_states"].half(), EngineError, r"\[1, 12, 32\] of torch.float16, must be \[1, 1"),
    ],
)
def test_what_the_called_model_does_wrong_is_an_error_that_names_it(family, answer, kind, message):
    with pytest.raises(EngineError, match=message) as caught:
        TritonEngine(family, Called(answer), "plan", batched=True).run(blocks(1, 2, 6))
    assert type(caught.value) is kind


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pipeline_on_a_called_block_stack_is_bit_for_bit_that_of_the_torch_engine(pipelines, name):
    pipe, tiny = pipelines(name), FAMILIES[name]
    family = family_of(getattr(pipe, tiny.transformer))
    stack = BlockStack(family, make_engine("torch", family))
    numbers = {n for n, tensor in family.example_inputs().items() if tensor.ndim == 1}

    def answer(inputs: BlockInputs) -> torch.Tensor:
        (result,) = stack.run([{n: tensor[:, 0] if n in numbers else tensor for n, tensor in inputs.items()}])
        assert isinstance(result, torch.Tensor), result
        return result

    called = Called(answer)
    host = PipelineHost(pipe, lambda family: TritonEngine(family, called, "blocks", batched=True))
    assert host.engine_name == "triton"
    cache = CacheConfig(interval=3, order=1, warmup_steps=1)
    guidance = next(iter(tiny.guidance.values()))
    arguments = {**tiny.arguments, **tiny.sizes[0], **guidance.arguments}
    ours = latents_of(host.pipeline_for(cache), **arguments)
    assert len(called.calls) == guidance.calls * len(cache.full_steps(5))
    assert torch.equal(ours, latents_of(PipelineHost(pipe, "torch").pipeline_for(cache), **arguments))


# What can be wrong in a configuration


def test_engine_triton_outside_a_server_says_what_to_do(flux):
    with pytest.raises(EngineError, match=r"engine triton .* works only inside a Triton model: set parameters engine"):
        PipelineHost(flux, "triton")


def test_a_pipeline_of_two_transformers_is_refused(flux):
    assert only_denoiser(flux, "emoji_blocks") is flux.transformer
    two = type("Two", (), {"transformer": flux.transformer, "transformer_2": flux.transformer})()
    with pytest.raises(ValueError, match=r"serves pipelines of one transformer, .* has transformer and transformer_2"):
        only_denoiser(two, "engine triton with engine_model wan_blocks")


@pytest.mark.parametrize(("text", "batch"), [("max_batch_size: 8", 8), ("max_batch_size: 0", 0), ("", 0)])
def test_whether_the_called_model_batches_is_read_from_its_own_configuration(tmp_path, text, batch):
    (tmp_path / "x_blocks").mkdir()
    (tmp_path / "x_blocks/config.pbtxt").write_text(text)
    parameters = {"pipeline": "a/b", "engine": "triton", "engine_model": "x_blocks"}
    config = ModelConfig.from_parameters(parameters, tmp_path / "x_stream")
    assert config.engine_model == EngineModel("x_blocks", batch)


def test_other_engines_call_no_model():
    assert ModelConfig.from_parameters({"pipeline": "a/b"}, Path("/models/x")).engine_model is None


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"engine": "triton"}, "parameter 'engine_model' is missing, must be the model that engine triton calls"),
        (
            {"engine": "torch", "engine_model": "x_blocks"},
            "parameter 'engine_model' is 'x_blocks', must be left out with engine torch",
        ),
        (
            {"engine": "triton", "engine_model": "nobody"},
            r"parameter 'engine_model' is 'nobody', must be a model beside this one: \S+nobody/config.pbtxt: No such",
        ),
        (
            {"engine": "triton", "engine_model": "broken"},
            "parameter 'engine_model' is 'broken': config.pbtxt cannot be read",
        ),
    ],
)
def test_an_engine_model_that_cannot_be_is_named(tmp_path, parameters, message):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.pbtxt").write_text("max_batch_size: many")
    with pytest.raises(InvalidConfig, match=message):
        ModelConfig.from_parameters({"pipeline": "a/b", **parameters}, tmp_path / "x_stream")


def test_parameters_of_tritons_python_backend_are_passed_over():
    parameters = {"pipeline": "a/b", "FORCE_CPU_ONLY_INPUT_TENSORS": "no", "EXECUTION_ENV_PATH": "/env.tar.gz"}
    assert ModelConfig.from_parameters(parameters, Path("/models/x")).source.pipeline == "a/b"


# Loading


def test_a_model_served_by_name_brings_the_model_that_it_calls(tmp_path):
    arguments, _ = command(ServerConfig(EXAMPLE, models=("emoji",)), Installation(Path("t"), None, {}), tmp_path)
    loaded = [each.split("=")[1] for each in arguments if each.startswith("--load-model")]
    assert loaded == ["emoji_blocks", "emoji_stream", "emoji"]


def test_a_called_model_that_is_not_in_the_repository_is_named_before_the_server_starts(monkeypatch):
    monkeypatch.setenv("TAYLORSEER_EMOJI_ENGINE_MODEL", "nobody")
    with pytest.raises(ServerError, match=r"model 'nobody' is not in .*, must be one of: emoji, emoji_blocks"):
        check(ServerConfig(EXAMPLE, "127.0.0.1", *free_ports(3), models=("emoji",)))


def test_the_block_stack_of_a_pipeline_that_would_be_downloaded_is_left_out_with_it(tmp_path):
    pipeline = 'parameters { key: "pipeline" value: { string_value: "nobody/has-this" } }'
    calls = 'parameters { key: "engine_model" value: { string_value: "far_blocks" } }'
    configs = {"far": "", "far_stream": f"{pipeline} {calls}", "far_blocks": pipeline, "near": "", "near_stream": ""}
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.pbtxt").write_text(config)
    arguments, _ = command(ServerConfig(tmp_path), Installation(Path("t"), None, {}), tmp_path)
    loaded = [each.split("=")[1] for each in arguments if each.startswith("--load-model")]
    assert loaded == ["near", "near_stream"]


# The shipped configurations


def parse(path: Path) -> Any:
    return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def declared(config: Any, family: Family, example: BlockInputs) -> dict[str, tuple[str, list[int]]]:
    """What a configuration must declare for a block stack: each input's dtype and dims, -1 where dynamic."""
    shapes = {}
    for name, tensor in example.items():
        dims = [-1 if axis in family.block_axes[name] else length for axis, length in enumerate(tensor.shape)]
        batched = config.max_batch_size > 0 and not is_shared(family, name)
        shapes[name] = (str(tensor.dtype), dims[1:] if batched else dims)
    return shapes


def said(config: Any) -> dict[str, tuple[str, list[int]]]:
    """What it declares, as the model gets it: `reshape` over `dims`."""
    return {
        each.name: (dtype_of(each), list(each.reshape.shape if each.HasField("reshape") else each.dims))
        for each in config.input
    }


def dtype_of(tensor: Any) -> str:
    name = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
    return "torch.bfloat16" if name == "BF16" else f"torch.{np.dtype(triton_to_np_dtype(name))}"


def test_the_emoji_example_declares_the_block_stack_of_its_pipeline():
    config = parse(EXAMPLE / "emoji_blocks/config.pbtxt")
    pipe = load_pipeline(ModelConfig.from_folder(EXAMPLE / "emoji_blocks").source, denoisers_only=True)
    family = family_of(pipe.transformer)
    assert said(config) == declared(config, family, family.example_inputs())
    assert [(each.name, list(each.dims)) for each in config.output] == [("features", [-1, 192])]
    assert (config.backend, config.max_batch_size) == ("python", 8)
    assert config.HasField("dynamic_batching")


def test_the_emoji_example_is_the_shipped_model_but_for_its_engine():
    theirs, ours = (ModelConfig.from_folder(folder / "emoji_stream") for folder in (ROOT / "model_repository", EXAMPLE))
    assert (ours.engine, ours.engine_model) == ("triton", EngineModel("emoji_blocks", 8))
    for name in ("source", "defaults", "presets", "limits", "max_in_flight", "max_sequence_length", "torch_threads"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ModelConfig.from_folder(EXAMPLE / "emoji_blocks").source == theirs.source


# The widths that real weights have and tiny ones do not, in place of the tiny ones
PLANS = {
    "dit_xl_2_256": ("dit", {"hidden_states": [256, 1152]}),
    "flux_dev": (
        "flux",
        {
            "hidden_states": [-1, -1, 3072],
            "encoder_hidden_states": [-1, -1, 3072],
            "temb": [-1, 3072],
            "rotary_cos": [-1, 128],
            "rotary_sin": [-1, 128],
        },
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_the_configurations_for_plans_declare_the_block_stacks_of_their_models(pipelines, name):
    kind, real = PLANS[name]
    config = parse(ROOT / f"examples/tensorrt_plan/{name}_blocks/config.pbtxt")
    served = ModelConfig.from_folder(ROOT / f"model_repository/{name}_stream")
    family = family_of(pipelines(kind).transformer)
    tiny = family.example_inputs()
    weights = {"hidden_states", "encoder_hidden_states", "temb"}  # in the dtype of the weights, the others in their own
    example = {n: t.to(getattr(torch, served.source.dtype)) if n in weights else t for n, t in tiny.items()}
    expected = declared(config, family, example)
    assert said(config).keys() == expected.keys()
    for each, (dtype, dims) in expected.items():
        assert said(config)[each] == (dtype, real.get(each, dims)), each
        assert len(said(config)[each][1]) == len(dims), each
    assert [(o.name, dtype_of(o), list(o.dims)) for o in config.output] == [
        ("features", f"torch.{served.source.dtype}", real["hidden_states"])
    ]
    assert (config.name, config.platform) == (f"{name}_blocks", "tensorrt_plan")
    shares = any(is_shared(family, each) for each in expected)
    assert (config.max_batch_size > 0) == (not shares) == config.HasField("dynamic_batching")
