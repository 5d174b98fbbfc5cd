"""One engine call shared by two processes on this machine: what they send each other, and what it costs; and the
speed-up to expect on 2, 4 and 8 GPUs.

Measured on a FLUX transformer of random weights, in float32: the bytes on the loopback device against the formula, and
the seconds of a full step of two processes with a thread each against one process with two threads and with one. Run it
alone: everything on the loopback device counts. The speed-ups are computed, not measured: matrix multiplications at a
share of an H100's 989 TFLOP/s, bytes over NVLink or PCIe, and a fixed time for each exchange; nothing overlaps.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, WanTransformer3DModel
from rich.console import Console

from benchmarks.environment import RESULTS, describe
from benchmarks.harness import check_least, parser_of, take_turns, warm_up, write
from plugin.config import ModelConfig
from plugin.engines.parallel.engine import ParallelEngine, Team
from plugin.engines.torch_engine import TorchEngine
from plugin.families import family_of
from plugin.families.base import BlockInputs
from plugin.parallelism import Parallelism, exchanged_bytes, handed_bytes
from plugin.paths import REPOSITORY
from plugin.serving.plan import architecture_of, example_request, feature_of

_HEADS, _HEAD_DIM, _DOUBLE, _SINGLE = 8, 64, 2, 4
_TEXT = 128
# Of one direction between two GPUs, in bytes a second: HGX H100 with NVLink 4, and PCIe 5 x16.
_LINKS = {"nvlink": 450e9, "pcie": 64e9}
_FLOPS = 0.4 * 989e12  # of an H100 in bfloat16, at a share that diffusers' blocks are near
_EXCHANGE_S = 20e-6  # of one exchange of a few MB between GPUs of one machine, without its bytes
_WAN_FFN = inspect.signature(WanTransformer3DModel.__init__).parameters["ffn_dim"].default
_MODELS = ("flux_dev", "qwen_image", "wan2_1_t2v", "hunyuan_video")


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, predicts, prints, and writes JSON."""
    parser = parser_of("parallel", __doc__)
    parser.add_argument("--turns", type=int, default=7, help="calls of each way")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024], help="of the picture")
    parser.add_argument("--output", type=Path, default=RESULTS / "parallel.json")
    arguments = parser.parse_args(argv)
    check_least(parser, arguments, turns=1)
    result = describe() | {"measured": measure(arguments.turns, arguments.tokens), "predicted": predictions()}
    write(arguments.output, result)
    Console().print_json(data={name: result[name] for name in ("measured", "predicted")})


def measure(turns: int, tokens: Sequence[int]) -> dict[str, Any]:
    """Bytes and seconds of a full step of two processes.

    Args:
        turns: calls of each way.
        tokens: of the picture, a case for each number; they divide by two.
    """
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        num_layers=_DOUBLE,
        num_single_layers=_SINGLE,
        attention_head_dim=_HEAD_DIM,
        num_attention_heads=_HEADS,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        axes_dims_rope=(16, 24, 24),
    )
    family = family_of(transformer.eval().requires_grad_(False))
    alone = TorchEngine(family.block_stack())
    team = Team({"transformer": family}, Parallelism(2), threads=1)
    try:
        shared = ParallelEngine(team, "transformer", family)
        cases = {}
        for count in tokens:
            inputs = family.inputs_of_size({"batch": 1, **family.axis_sizes(count, _TEXT)})
            ways = {
                "alone_2_threads": _with_threads(2, alone, inputs),
                "alone_1_thread": _with_threads(1, alone, inputs),
                "two_processes": _with_threads(1, shared, inputs),
            }
            cases[str(count)] = _case(ways, turns) | _traffic(ways["two_processes"], inputs, turns)
    finally:
        team.close()
    blocks = {"heads": _HEADS, "width": _HEADS * _HEAD_DIM, "blocks": _DOUBLE + _SINGLE, "text_tokens": _TEXT}
    return {"turns": turns, **blocks, "picture_tokens": cases}


def _with_threads(threads: int, engine: Any, inputs: BlockInputs) -> Callable[[], object]:
    def call() -> None:
        torch.set_num_threads(threads)
        with torch.no_grad():
            engine.run(inputs)

    return call


def _case(ways: dict[str, Callable[[], object]], turns: int) -> dict[str, Any]:
    warm_up(ways)
    seconds = take_turns(ways, turns)
    shared = seconds["two_processes"]

    def over(other: str) -> float:
        return median(own / each for own, each in zip(shared, seconds[other], strict=True))

    return {
        **{f"{way}_s": median(each) for way, each in seconds.items()},
        "two_processes_over_alone_2_threads": over("alone_2_threads"),
        "two_processes_over_alone_1_thread": over("alone_1_thread"),
    }


def _traffic(call: Callable[[], object], inputs: BlockInputs, calls: int) -> dict[str, Any]:
    tokens, text = inputs["hidden_states"].shape[1], inputs["encoder_hidden_states"].shape[1]
    width = inputs["hidden_states"].shape[2]
    tables = inputs["rotary_cos"].nbytes + inputs["rotary_sin"].nbytes
    before = _loopback_bytes()
    for _ in range(calls):
        call()
    measured = (_loopback_bytes() - before) / calls
    computed = exchanged_bytes(tokens + text, width, _DOUBLE + _SINGLE, 1, 4, 2)
    handed = handed_bytes(tokens, text, width, tables, 1, 4, 2)
    return {
        "bytes": measured,
        "bytes_of_formula": computed + handed,
        "bytes_over_formula": measured / (computed + handed),
    }


def _loopback_bytes() -> int:
    """Bytes that have been sent over the loopback device."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    raise OSError("/proc/net/dev has no loopback device")


@dataclass(frozen=True)
class FullStep:
    """A full step of a shipped model at its default size, one row in bfloat16.

    Attributes:
        tokens: that attend to each other.
        width: D.
        blocks: of the stack.
        flops: of its matrix multiplications.
    """

    tokens: int
    width: int
    blocks: int
    flops: float

    @classmethod
    def of(cls, model: str) -> FullStep:
        """Of a shipped model.

        A block multiplies each token with 12 D^2 weights, in whatever layers they are; Wan's with those of its layers.
        Attention is 4 S^2 D.
        """
        config = ModelConfig.from_folder(REPOSITORY / f"{model}_stream")
        architecture = architecture_of(config.source.pipeline)
        tokens, width, text = feature_of(config, architecture, example_request(config))
        options = architecture.config
        blocks = options["num_layers"] + options.get("num_single_layers", 0)
        weights = 12 * width**2
        if architecture.transformer == "WanTransformer3DModel":  # attention, the same to the text's keys, feed-forward
            weights = 6 * width**2 + 2 * width * options.get("ffn_dim", _WAN_FFN)
        else:
            tokens += text
        return cls(tokens, width, blocks, blocks * (2.0 * tokens * weights + 4.0 * tokens**2 * width))

    def seconds(self, processes: int, bytes_per_s: float) -> float:
        """Of the step, shared by GPUs."""
        computing = self.flops / _FLOPS / processes
        if processes == 1:
            return computing
        sent = exchanged_bytes(self.tokens, self.width, self.blocks, 1, 2, processes) / processes
        return computing + sent / bytes_per_s + 4 * self.blocks * _EXCHANGE_S


def predictions() -> dict[str, Any]:
    """The expected speed-up of a full step, by model, link and number of GPUs."""
    table = {}
    for model in _MODELS:
        step = FullStep.of(model)
        speed_ups = {
            link: {
                str(processes): step.seconds(1, bytes_per_s) / step.seconds(processes, bytes_per_s)
                for processes in (2, 4, 8)
            }
            for link, bytes_per_s in _LINKS.items()
        }
        exchanged = {
            str(processes): exchanged_bytes(step.tokens, step.width, step.blocks, 1, 2, processes)
            for processes in (2, 4, 8)
        }
        one_gpu_s = step.seconds(1, _LINKS["nvlink"])
        table[model] = asdict(step) | {"one_gpu_s": one_gpu_s, "exchanged_bytes": exchanged, "speed_up": speed_ups}
    return {
        "assumed": {"flops": _FLOPS, "exchange_s": _EXCHANGE_S, **{f"{k}_bytes_per_s": v for k, v in _LINKS.items()}},
        "models": table,
    }


if __name__ == "__main__":
    main()
