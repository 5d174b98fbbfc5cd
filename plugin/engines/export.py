"""Exports a block stack to ONNX and keeps the optimised form under a key of everything that decides its content."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import onnxruntime
import torch
from torch import nn

from plugin.engines.engine_cache import build_once
from plugin.engines.onnxruntime_session import providers, session_options
from plugin.families.base import Family
from plugin.paths import default_cache_dir

OPSET = 20
_EXPORT_REVISION = 2  # raise it when this file changes what it writes
_PACKAGES = ("torch", "diffusers", "onnx", "onnxscript")


def optimized_onnx(family: Family, cache_dir: Path | None = None) -> Path:
    """The path of the block stack's optimised ONNX file, exported and optimised now if the cache lacks it.

    Two processes that start at once are safe: one builds in a folder of its own and renames it into place, the other
    waits for it.

    Args:
        family: the family, with its blocks in place.
        cache_dir: None for `default_cache_dir()`.

    Raises:
        EngineError: the family is on a GPU, and this ONNX Runtime serves none.
        OSError: the cache folder cannot be written.
    """
    stack = family.export_stack().eval()
    # What is optimised for CUDA is another graph than what is for the CPU.
    runtime = [onnxruntime.__version__, *(name for name, _ in providers(family.device))]
    processor = [*runtime, platform.machine(), torch.backends.cpu.get_cpu_capability()]
    folder = (cache_dir or default_cache_dir()) / "onnx" / stack_key(family, stack, processor)
    model = folder / "optimized.onnx"

    def build(scratch: Path) -> None:
        exported = scratch / "exported" / "model.onnx"
        exported.parent.mkdir()
        export_onnx(family, stack, exported)
        _optimize(exported, scratch / "optimized.onnx", family.device)
        shutil.rmtree(exported.parent)  # as large as the weights, and not needed any more

    build_once(folder, model.exists, build)
    return model


def stack_key(family: Family, stack: nn.Module, more: object = None) -> str:
    """A hash of all that decides the exported block stack: weights with what LoRA changed in them, their dtype, the
    architecture, the export and its packages' versions.

    Args:
        family: the stack's family.
        stack: in the form that is exported.
        more: what else shall change the key; anything that JSON can hold.
    """
    config: Mapping[str, object] = family.transformer.config  # type: ignore[assignment]
    description = {
        "family": family.name,
        "config": {name: repr(value) for name, value in config.items() if name[0] != "_"},
        "opset": OPSET,
        "revision": _EXPORT_REVISION,
        "packages": {name: version(name) for name in _PACKAGES},
        "more": more,
    }
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(stack.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return f"{family.name}-{digest.hexdigest()[:32]}"


def export_onnx(family: Family, stack: nn.Module, path: Path) -> None:
    """Writes the block stack as ONNX: opset 20, weights in an external file beside it, axes of `block_axes` dynamic."""
    inputs = family.example_inputs()
    axes = {name: dict.fromkeys(family.block_axes[name], torch.export.Dim.DYNAMIC) for name in inputs}
    with torch.no_grad():
        program = torch.onnx.export(
            stack,
            kwargs=inputs,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=axes,
            input_names=list(inputs),
            output_names=["features"],
            optimize=True,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=True)


def _optimize(exported: Path, optimized: Path, device: torch.device) -> None:
    options = session_options(None, optimize=True)
    options.optimized_model_filepath = str(optimized)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.bin")
    onnxruntime.InferenceSession(str(exported), options, providers=providers(device))
