"""Weights below 16 bits, by the means of diffusers and transformers: quantised when they are loaded, or GGUF files."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from torch import nn

from plugin.engines.base import no_gpu

_PACKAGES = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}


def quantization_config(name: str, kind: str, dtype: torch.dtype, library: str) -> Any:
    """How a component is quantised, as its `from_pretrained` takes it.

    Args:
        name: of the component, for messages.
        kind: "int8" or "fp8", of weights alone, by torchao; or "nf4", by bitsandbytes.
        dtype: in which it computes.
        library: "diffusers" or "transformers", of which its class is.

    Raises:
        OSError: the package that quantises is not installed.
        ValueError: diffusers quantises in this way on a GPU alone, and there is none.
    """
    _check_installed(f"quantization of {name} to {kind}", _PACKAGES[kind])
    configs = import_module(library)
    if kind == "nf4":
        if library == "diffusers" and (missing := no_gpu()):
            raise ValueError(
                f"quantization of {name} is nf4, must be int8 or fp8 without a GPU: diffusers quantises a transformer "
                f"to nf4 on one alone, and {missing}"
            )
        return configs.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig  # takes a second, and may be missing

    weights = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[kind]
    # With its default torchao sets options of the whole process: the precision of float32 products, torch.compile's.
    return configs.TorchAoConfig(weights(set_inductor_config=False))


def check_gguf(name: str, model: type[Any], place: str) -> None:
    """Checks that a component can come from a GGUF file.

    Args:
        name: of the component.
        model: its class.
        place: the file.

    Raises:
        OSError: the package gguf is not installed.
        ValueError: diffusers reads no such file for this class.
    """
    _check_installed(f"component {name} {place}", "gguf")
    if model.__name__ not in SINGLE_FILE_LOADABLE_CLASSES:
        raise ValueError(
            f"component {name} is the GGUF file {place}, must be a folder or a hub id: diffusers reads no such file "
            f"for {model.__name__}"
        )


def load_gguf(name: str, model: type[Any], place: str, pipeline: str, dtype: torch.dtype) -> Any:
    """A transformer from a GGUF file, with the configuration that the pipeline has for it.

    Args:
        name: of the component.
        model: its class.
        place: the file, or where it lies on the hub: owner/repository/name.gguf.
        pipeline: hub id or folder of the pipeline.
        dtype: in which it computes.

    Raises:
        OSError: there is no such file.
    """
    config = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
    return model.from_single_file(
        _address(place), quantization_config=config, dtype=dtype, config=pipeline, subfolder=name
    )


def _address(place: str) -> str:
    """A file as `from_single_file` takes it: its path, or an address of the hub."""
    if Path(place).is_file():
        return place
    owner, _, rest = place.partition("/")
    repository, _, file = rest.partition("/")
    if not (owner and repository and file):
        raise FileNotFoundError(f"there is no file {place}")
    return f"https://huggingface.co/{owner}/{repository}/blob/main/{file}"


def settle(pipe: DiffusionPipeline) -> None:
    """Calls each of bitsandbytes' layers once, so that no call of a request is the first.

    At its first call a layer changes itself (0.50.2, nn/modules.py): on a CPU it packs its numbers for the processor's
    instructions, elsewhere it casts its bias. Two requests that came first at once would compute with one half of it.
    """
    components = [each for each in pipe.components.values() if isinstance(each, nn.Module)]
    for part in (part for component in components for part in component.modules()):
        if isinstance(part, nn.Linear) and type(part).__module__.startswith("bitsandbytes."):
            dtype = getattr(part, "compute_dtype", None) or torch.float16
            with torch.no_grad():
                part(torch.zeros(1, part.in_features, dtype=dtype, device=part.weight.device))


def _check_installed(what: str, package: str) -> None:
    if find_spec(package) is None:
        raise OSError(
            f"{what} needs the package {package}, which is not installed: pip install 'triton-taylorseer[quantization]'"
        )
