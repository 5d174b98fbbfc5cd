"""The block stack as an AOTInductor package: compiled ahead, and kept under a key of everything that decides it."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import torch
from torch import nn
from torch._inductor import aoti_compile_and_package, config
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.export import ExportedProgram

from plugin.engines.base import EngineError
from plugin.engines.engine_cache import build_once
from plugin.engines.export import ByOneArgument, dynamic_axes, stack_key
from plugin.families.base import BlockInputs, Family
from plugin.paths import default_cache_dir
from plugin.sealed import damage, seal

INPUTS = "inputs"  # of a package's metadata: JSON, the dtype of each argument of the block stack, in their order

_PACKAGE = "blocks.pt2"
_REVISION = 1  # raise it when this file changes what it compiles
_SETTINGS = {
    # Weights would be in the package, in torch's temporary folder as it is loaded, and in memory beside the blocks'.
    "aot_inductor.package_constants_in_so": False,
    # As many threads as torch has where it runs, not where it was compiled.
    "cpp.dynamic_threads": True,
}


def built_package(family: Family, stack: nn.Module, cache_dir: Path | None = None) -> Path:
    """The path of the block stack's package, compiled now if the cache lacks it.

    Two processes may ask for it at once: one builds, the other waits (`build_once`). What the cache holds is compared
    with the checksums that it was written with; a damaged package is built again.

    Args:
        family: the family, with its blocks in place.
        stack: its `export_stack`.
        cache_dir: None for `default_cache_dir()`.

    Raises:
        EngineError: it cannot be compiled; the message says why and what helps.
        OSError: the cache folder cannot be written.
    """
    key = stack_key(family, stack, [_REVISION, _settings(), _processors(family.device), _strides(stack)])
    folder = (cache_dir or default_cache_dir()) / "inductor" / key

    def build(scratch: Path) -> None:
        _compile(family, stack, scratch / _PACKAGE)
        seal(scratch)

    build_once(folder, lambda: damage(folder) is None, build)
    return folder / _PACKAGE


def weights_of(stack: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a block stack by the names that its package has for them, without gradients."""
    exported = ByOneArgument(stack, {})
    named = (*exported.named_parameters(remove_duplicate=False), *exported.named_buffers(remove_duplicate=False))
    return {name: tensor.detach() for name, tensor in named}


def _compile(family: Family, stack: nn.Module, path: Path) -> None:
    _check_compilers(family.device)
    # The code takes the strides that it sees here for those of all inputs.
    inputs = {name: tensor.contiguous() for name, tensor in family.example_inputs().items()}
    try:
        program = _exported(family, stack, inputs)
        dtypes = json.dumps({name: str(tensor.dtype) for name, tensor in inputs.items()})
        settings = {**_SETTINGS, "aot_inductor.metadata": {INPUTS: dtypes}}
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)
    except Exception as error:  # whatever the exporter, the code generator or a compiler raises
        raise EngineError(
            f"engine inductor cannot compile the blocks of {type(family.transformer).__name__} ({_reason(error)}): "
            "remove the reason, or set engine to another one"
        ) from error
    finally:
        _forget()


def _exported(family: Family, stack: nn.Module, inputs: BlockInputs) -> ExportedProgram:
    """The block stack as torch's exporter sees it, with the axes of `block_axes` dynamic.

    Raises:
        ValueError: it computes with tensors of its own, which the engine could not find again when it loads.
    """
    axes = {"inputs": dynamic_axes(family, inputs)}
    with torch.no_grad():
        program = torch.export.export(
            ByOneArgument(stack, family.block_axes), (), {"inputs": inputs}, dynamic_shapes=axes
        )
    if own := sorted(program.constants.keys() - weights_of(stack).keys()):
        raise ValueError(f"tensors that are neither parameters nor buffers: {', '.join(own)}")
    return program


def _forget() -> None:
    """Has torch let go of the blocks: it keeps the graph that it traced last (2.13, fx/experimental/proxy_tensor.py).
    Another one takes its place."""
    torch.export.export(nn.Identity(), (torch.zeros(1),))


def _check_compilers(device: torch.device) -> None:
    """Before the export, which takes its time.

    Raises:
        EngineError: a compiler is missing.
    """
    elsewhere = "or build on a machine like this one that has it, and copy the cache folder"
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise EngineError(
            f"engine inductor compiles with a C++ compiler, which is missing: apt install g++, or name one in CXX, "
            f"{elsewhere}"
        ) from None
    if device.type != "cpu":
        try:
            import triton  # noqa: F401
        except ImportError:
            raise EngineError(
                f"engine inductor on {device} compiles with OpenAI's Triton, which cannot be imported: pip install "
                f"triton, {elsewhere}"
            ) from None


def _settings() -> str:
    """All settings of the code generator; the environment and other code of this process may have set some."""
    return repr(sorted({**config.save_config_portable(), **_SETTINGS}.items()))


def _processors(device: torch.device) -> list[str | None]:
    """What the code is compiled for: all features of the processor, and the GPU."""
    features = sorted(name for name, has in torch.cpu.get_capabilities().items() if has is True)
    processors: list[str | None] = [device.type, platform.machine(), *features]
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        processors += [gpu.name, f"{gpu.major}.{gpu.minor}", torch.version.cuda, torch.version.hip]
    return processors


def _strides(stack: nn.Module) -> dict[str, list[int]]:
    """How the weights lie in memory, which the code relies on."""
    return {name: [*tensor.stride()] for name, tensor in weights_of(stack).items()}


def _reason(error: Exception) -> str:
    """The line of a message that says most: a C++ compiler's first error, else its first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "error: " in line), next(iter(lines), type(error).__name__))
