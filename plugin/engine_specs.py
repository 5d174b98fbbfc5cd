"""The engines that can run a block stack, as data: what each is called and how it differs from the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class EngineSpec:
    """What is known of an engine before it is imported.

    Attributes:
        name: as in a model's configuration and in reports.
        module: the module whose `load_engine` makes it.
        keeps_torch_blocks: it runs the torch blocks themselves, so they must stay in place.
        made_ahead: what `make_file` of its module does with the block stack to make the file that it runs, for
            `triton-taylorseer build`. Empty where there is no such file, or TensorRT's compiler makes it.
        has_own_threads: its calls run on threads of its own, whose number is fixed when it is loaded. Concurrent calls
            then use a second engine, with fewer threads.
        needs_server: it works only inside a Triton server, where it calls another model.
        flavour: "tensorrt" or "tensorrt-rtx" if one of these compiled it, else None. Only these have build options.
        fp8: its matrix multiplications are in fp8.
        opens_file: it runs a file that is made from the blocks, and needs them no more when it opens that. Its module
            has a `prepare_engine` too, which makes the file.
        takes_quantized: it runs blocks whose weights are quantised; see `plugin.quantization`.
        is_parallel: several processes share each call; it has the parameters of `plugin.parallelism.Parallelism`.
    """

    name: str
    module: str
    keeps_torch_blocks: bool = False
    made_ahead: str = ""
    has_own_threads: bool = False
    needs_server: bool = False
    flavour: str | None = None
    fp8: bool = False
    opens_file: bool = False
    takes_quantized: bool = False
    is_parallel: bool = False


_TENSORRT = "plugin.engines.tensorrt.engine"

ENGINES: Mapping[str, EngineSpec] = {
    spec.name: spec
    for spec in (
        EngineSpec("torch", "plugin.engines.torch_engine", keeps_torch_blocks=True, takes_quantized=True),
        EngineSpec(
            "onnxruntime",
            "plugin.engines.onnxruntime_engine",
            made_ahead="exporting and optimising",
            has_own_threads=True,
            opens_file=True,
        ),
        EngineSpec("inductor", "plugin.engines.inductor_engine", made_ahead="exporting and compiling"),
        EngineSpec("parallel", "plugin.engines.parallel.engine", is_parallel=True),
        EngineSpec("triton", "plugin.engines.triton_engine", needs_server=True),
        EngineSpec("tensorrt", _TENSORRT, flavour="tensorrt", opens_file=True),
        EngineSpec("tensorrt-rtx", _TENSORRT, flavour="tensorrt-rtx", opens_file=True),
        EngineSpec("tensorrt-fp8", _TENSORRT, flavour="tensorrt", fp8=True, opens_file=True),
        EngineSpec("tensorrt-rtx-fp8", _TENSORRT, flavour="tensorrt-rtx", fp8=True, opens_file=True),
    )
}


def engine_spec(name: str) -> EngineSpec:
    """The engine of a name.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    if name not in ENGINES:
        raise ValueError(f"engine is {name!r}, must be one of: {', '.join(ENGINES)}")
    return ENGINES[name]


def tensorrt_engine_name(flavour: str, fp8: bool) -> str:
    """The name of the engine that a flavour of TensorRT compiles, in fp8 or not."""
    return next(spec.name for spec in ENGINES.values() if (spec.flavour, spec.fp8) == (flavour, fp8))
