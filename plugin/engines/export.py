"""The block stack as ONNX: exported, optimised for ONNX Runtime, and kept under a key of everything that decides it."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import nn

from plugin.engines.engine_cache import build_once
from plugin.engines.onnxruntime_session import providers, session_options
from plugin.families.base import BlockInputs, Family
from plugin.families.weights import plain_tensors
from plugin.paths import default_cache_dir, exports_dir
from plugin.sealed import damage, seal

OPSET = 20
_EXPORT_REVISION = 2  # raise it when this file changes what it writes
_PACKAGES = ("torch", "diffusers", "onnx", "onnxscript")


def optimized_onnx(family: Family, cache_dir: Path | None = None) -> Path:
    """The path of the block stack's optimised ONNX file, exported and optimised now if the cache lacks it.

    Two processes may ask for it at once: one builds, the other waits (`build_once`). What the cache holds is compared
    with the checksums that it was written with; a damaged file is built again.

    Args:
        family: the family, with its blocks in place.
        cache_dir: None for `default_cache_dir()`.

    Raises:
        EngineError: the family is on a GPU, and this ONNX Runtime does not support GPUs.
        OSError: the cache folder cannot be written.
    """
    stack = family.export_stack().eval()
    # The graph that is optimised for CUDA differs from the one for the CPU.
    runtime = [onnxruntime.__version__, *(name for name, _ in providers(family.device))]
    processor = [*runtime, platform.machine(), torch.backends.cpu.get_cpu_capability()]
    folder = (cache_dir or default_cache_dir()) / "onnx" / stack_key(family, stack, processor)
    model = folder / "optimized.onnx"

    def build(scratch: Path) -> None:
        unoptimized = scratch / "exported"
        unoptimized.mkdir()
        _optimize(exported_onnx(family, stack, unoptimized), scratch / "optimized.onnx", family.device)
        shutil.rmtree(unoptimized)
        seal(scratch)

    build_once(folder, lambda: damage(folder) is None, build)
    return model


def exported_onnx(family: Family, stack: nn.Module, scratch: Path) -> Path:
    """The block stack as an ONNX file with its weights beside it: a kept export, or one that is made now.

    An export is as large as the weights, and who builds one engine needs it once. So it is written to `scratch`, which
    the caller removes. If `$TRITON_TAYLORSEER_EXPORTS` names a folder, the export is kept there under `stack_key`, and
    every engine that is built from the same weights uses it: TensorRT for other sizes, targets and options, fp8 beside
    fp16, ONNX Runtime. A kept export that is damaged is made again.

    Args:
        family: the family, with its blocks in place.
        stack: its `export_stack`.
        scratch: a folder to write to if the export is not kept.

    Returns:
        The file's path. Others may be reading it: it must not be changed, and neither must its folder.

    Raises:
        OSError: a folder cannot be written.
    """
    kept = exports_dir()
    if kept is None:
        export_onnx(family, stack, scratch / "model.onnx")
        return scratch / "model.onnx"
    folder = kept / stack_key(family, stack)

    def build(new: Path) -> None:
        export_onnx(family, stack, new / "model.onnx")
        seal(new)

    build_once(folder, lambda: damage(folder) is None, build, setting="TRITON_TAYLORSEER_EXPORTS")
    return folder / "model.onnx"


def stack_key(family: Family, stack: nn.Module, more: object = None) -> str:
    """A hash of everything that decides the exported block stack: the weights with the LoRA fused into them, their
    dtype, the architecture, the export and the versions of its packages.

    Args:
        family: the stack's family.
        stack: in the form that is exported.
        more: what else the key depends on; anything that JSON can hold.
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
    for name, weight in sorted(stack.state_dict().items()):
        for part, tensor in plain_tensors(weight):
            digest.update(f"{name}{part} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return f"{family.name}-{digest.hexdigest()[:32]}"


def export_onnx(family: Family, stack: nn.Module, path: Path) -> None:
    """Writes the block stack as ONNX: opset 20, weights in a file beside it, the axes of `block_axes` dynamic."""
    inputs = family.example_inputs()
    with torch.no_grad():
        program = torch.onnx.export(
            ByOneArgument(stack, family.block_axes),
            kwargs={"inputs": inputs},
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes={"inputs": dynamic_axes(family, inputs)},
            input_names=list(inputs),
            output_names=["features"],
            optimize=False,
            verbose=False,
        )
    assert program is not None
    weights = [*program.model.graph.initializers.values()]
    program.optimize()
    program.save(str(path), external_data=True)
    # onnxscript's rewriting rules live as long as the process and keep the last graph that they matched (0.7.2,
    # rewriter/_matcher.py), which would keep the torch blocks.
    for value in (*weights, *program.model.graph.initializers.values()):
        value.const_value = None


def dynamic_axes(family: Family, inputs: BlockInputs) -> dict[str, dict[int, Any]]:
    """The axes of `block_axes` as torch's exporter marks dynamic ones, for the arguments that are exported."""
    return {name: dict.fromkeys(family.block_axes[name], torch.export.Dim.DYNAMIC) for name in inputs}


class ByOneArgument(nn.Module):
    """A block stack that takes its arguments as one mapping, `inputs`: their names may be such that no function could
    declare them, and the exporter tells axes of arguments that are not declared from no others.

    Args:
        stack: the block stack.
        axes: the family's `block_axes`.
    """

    def __init__(self, stack: nn.Module, axes: Mapping[str, Mapping[int, str]]) -> None:
        super().__init__()
        self.stack = stack
        self._axes = axes

    def forward(self, inputs: BlockInputs) -> torch.Tensor:
        """The feature, with every length of one name checked to be the same."""
        lengths: dict[str, int] = {}
        for argument, tensor in inputs.items():
            for axis, name in self._axes[argument].items():  # to the exporter, each axis is a length of its own
                torch._check(tensor.shape[axis] == lengths.setdefault(name, tensor.shape[axis]))
        if {"image_tokens", "rows", "columns"} <= lengths.keys():
            tokens = lengths.get("frames", 1) * lengths["rows"] * lengths["columns"]
            torch._check(lengths["image_tokens"] == tokens)
        return self.stack(**inputs)


def _optimize(exported: Path, optimized: Path, device: torch.device) -> None:
    options = session_options(None, optimize=True)
    options.optimized_model_filepath = str(optimized)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.bin")
    onnxruntime.InferenceSession(str(exported), options, providers=providers(device))
