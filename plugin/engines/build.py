"""Exports a block stack to ONNX and keeps the optimised form under a key of everything that decides its content."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock
from torch import nn

from plugin.cache_dir import default_cache_dir
from plugin.families.base import Family

OPSET = 20
_EXPORT_REVISION = 2  # raise it when this file changes what it writes
_PACKAGES = ("torch", "diffusers", "onnx", "onnxscript", "onnxruntime")


def optimized_onnx(family: Family, cache_dir: Path | None = None) -> Path:
    """The path of the block stack's optimised ONNX file, exported and optimised now if the cache lacks it.

    Two processes that start at once are safe: one builds in a folder of its own and renames it into place, the other
    waits for it.

    Args:
        family: the family, with its blocks in place.
        cache_dir: None for `default_cache_dir()`.

    Raises:
        OSError: the cache folder cannot be written.
    """
    root = (cache_dir or default_cache_dir()) / "onnx"
    stack = family.export_stack().eval()
    folder = root / engine_key(family, stack)
    model = folder / "optimized.onnx"
    if model.exists():
        return model
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{folder.name}.lock"):
        if not model.exists():
            _build(family, stack, folder)
    return model


def engine_key(family: Family, stack: nn.Module) -> str:
    """A hash of the weights, the architecture, the export, and the versions and processor that optimise it."""
    config: Mapping[str, object] = family.transformer.config  # type: ignore[assignment]
    description = {
        "family": family.name,
        "config": {name: repr(value) for name, value in config.items() if name[0] != "_"},
        "opset": OPSET,
        "revision": _EXPORT_REVISION,
        "packages": {name: version(name) for name in _PACKAGES},
        "processor": [platform.machine(), torch.backends.cpu.get_cpu_capability()],
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


def build_model(model_dir: Path, progress: Callable[[str], None]) -> list[Path]:
    """Builds the engines of a model folder ahead of serving it.

    Args:
        model_dir: a folder of the model repository with a config.pbtxt.
        progress: called with a sentence at each stage.

    Returns:
        The files that the server will load, one for each transformer; none for an engine that needs no build.
    """
    from plugin.config import ModelConfig
    from plugin.families import family_of
    from plugin.pipeline import denoisers, load_pipeline

    config = ModelConfig.from_folder(model_dir)
    progress(f"loading {config.source.pipeline}")
    pipe = load_pipeline(config.source)
    if config.engine != "onnxruntime":
        return []
    progress("exporting and optimising the block stack")
    return [optimized_onnx(family_of(getattr(pipe, name))) for name in denoisers(pipe)]


def _build(family: Family, stack: nn.Module, folder: Path) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        exported = scratch / "exported" / "model.onnx"
        exported.parent.mkdir()
        export_onnx(family, stack, exported)
        _optimize(exported, scratch / "optimized.onnx")
        shutil.rmtree(exported.parent)  # as large as the weights, and not needed any more
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _optimize(exported: Path, optimized: Path) -> None:
    import onnxruntime

    from plugin.engines.onnxruntime_engine import providers, session_options

    options = session_options(None, optimize=True)
    options.optimized_model_filepath = str(optimized)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.bin")
    onnxruntime.InferenceSession(str(exported), options, providers=providers())
