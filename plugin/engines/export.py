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
    import onnxruntime

    from plugin.engines.onnxruntime_engine import providers

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


def build_once(folder: Path, is_whole: Callable[[], bool], build: Callable[[Path], None]) -> None:
    """Fills a folder of the cache unless it is whole: in a folder beside it that is renamed, by one process at a time.

    Args:
        folder: what to fill; what is left of a damaged one is removed.
        is_whole: whether the folder can be used as it is.
        build: fills the folder that it is given; what it raises leaves nothing behind.

    Raises:
        OSError: the folder cannot be written; the message says what helps.
    """
    if is_whole():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"{folder.name}.lock"):
            if is_whole():
                return
            scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
            try:
                build(scratch)
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(scratch, folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            f"no engine can be built in {folder.parent} ({reason}): make room there and let this user write there, or "
            "name another folder with TRITON_TAYLORSEER_CACHE"
        ) from error


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
    import onnxruntime

    from plugin.engines.onnxruntime_engine import providers, session_options

    options = session_options(None, optimize=True)
    options.optimized_model_filepath = str(optimized)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.bin")
    onnxruntime.InferenceSession(str(exported), options, providers=providers(device))
