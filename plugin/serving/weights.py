"""How many bytes the modules of a pipeline are, built without memory for their numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from plugin.config import PipelineSource
from plugin.families import family_of
from plugin.families.base import Family
from plugin.quantization import is_gguf
from plugin.serving.components import class_of
from plugin.serving.parts import PipelinePart

# Of each row, of each 64 numbers, and of each weight, beside the numbers themselves (torchao 0.18.0, bitsandbytes
# 0.50.2 without double quantisation): scale and zero point, scale, scale and table.
_ROW_BYTES = {"int8": 5, "fp8": 4}
_NF4_BLOCK, _NF4_BLOCK_BYTES, _NF4_TABLE_BYTES = 64, 4, 16 * 4


@dataclass(frozen=True)
class Weights:
    """The weights of one component.

    Attributes:
        name: of the component.
        parameters: how many numbers they are; what is shared counts once.
        nbytes: what they take in memory, buffers included.
        form: their dtype, or how they are quantised.
        offload: "cpu" or "idle" where they are not on the device all the time, else None.
        unpacked_bytes: the largest weight that a call makes 16 or 32 bits of, where they are quantised; else 0.
    """

    name: str
    parameters: int
    nbytes: int
    form: str
    offload: str | None = None
    unpacked_bytes: int = 0


def weights_of(name: str, part: PipelinePart, source: PipelineSource) -> Weights:
    """The weights of one component as they are loaded.

    Args:
        name: of the component.
        part: its class and options.
        source: its dtype, quantisation and place.

    Raises:
        ValueError: it comes from a GGUF file of the hub, whose size is not known before it is downloaded.
    """
    dtype = getattr(torch, source.dtype_of(name))
    kind, offload = dict(source.quantization).get(name), dict(source.offload).get(name)
    parameters = sum(each.numel() for each in on_meta(part, dtype).parameters())
    nbytes, largest = _loaded_bytes(part, dtype, kind)
    place = dict(source.components).get(name, "")
    if is_gguf(place):
        if not Path(place).is_file():
            raise ValueError(f"component {name} is {place}, must be a file of this machine to be planned")
        return Weights(name, parameters, Path(place).stat().st_size, "GGUF", offload, largest)
    form = kind or str(dtype).removeprefix("torch.")
    return Weights(name, parameters, nbytes, form, offload, largest if kind else 0)


def made_on_meta(part: PipelinePart, dtype: torch.dtype) -> nn.Module:
    """A module on the meta device, in the dtypes in which `from_pretrained` loads it."""
    options, module_class = json.loads(part.options), class_of(part.package, part.class_name)
    with torch.device("meta"):
        if hasattr(module_class, "from_config"):  # of diffusers
            module = module_class.from_config(options)
        else:
            module = module_class(module_class.config_class.from_dict(options))
    nn.Module.to(module, dtype)
    for name, parameter in module.named_parameters():
        if _is_among(name, _float32_names(module, dtype)):
            parameter.data = parameter.data.float()
    return module.eval()


on_meta = lru_cache(maxsize=64)(made_on_meta)  # to be read only; making one takes up to half a second


@lru_cache(maxsize=64)
def family_on_meta(part: PipelinePart, dtype: torch.dtype) -> Family:
    """The family of a transformer on the meta device.

    Raises:
        TypeError: its class is not served.
    """
    return family_of(on_meta(part, dtype))


@lru_cache(maxsize=256)
def block_bytes(part: PipelinePart, dtype: torch.dtype, kind: str | None = None) -> int:
    """Bytes of a transformer's block stack; `kind` as `bytes_of` has it."""
    return bytes_of(family_on_meta(part, dtype).block_stack(), kind)


@lru_cache(maxsize=256)
def _loaded_bytes(part: PipelinePart, dtype: torch.dtype, kind: str | None) -> tuple[int, int]:
    """Bytes of a module, and of the largest weight that is quantised."""
    module = on_meta(part, dtype)
    return bytes_of(module, kind), max((each.nbytes for each in _quantizable(module, kind or "nf4")), default=0)


def bytes_of(module: nn.Module, kind: str | None = None) -> int:
    """Bytes of a module's weights and buffers, what is shared counted once.

    Args:
        module: on the meta device.
        kind: how its linear layers are quantised: "int8", "fp8" or "nf4"; None for not at all.
    """
    quantized = {id(each) for each in _quantizable(module, kind)} if kind else set()
    tensors: Iterable[torch.Tensor] = dict.fromkeys([*module.parameters(), *module.buffers()])
    return sum(_quantized_bytes(each, kind) if kind and id(each) in quantized else each.nbytes for each in tensors)


def _quantized_bytes(weight: torch.Tensor, kind: str) -> int:
    if kind == "nf4":
        blocks = math.ceil(weight.numel() / _NF4_BLOCK)
        return math.ceil(weight.numel() / 2) + blocks * _NF4_BLOCK_BYTES + _NF4_TABLE_BYTES
    return weight.numel() + len(weight) * _ROW_BYTES[kind]


def _quantizable(module: nn.Module, kind: str) -> list[torch.Tensor]:
    """The weights that are quantised: those of linear layers, with exceptions.

    diffusers (0.42.0) leaves out what a class wants in float32. transformers (5.23.0) leaves out the last layer of
    language models; and what a class wants in float32, as T5 some of its layers, of nf4 alone: torchao's quantizer
    compares the ends of layers' names with those of their weights.
    """
    kept = list(getattr(module, "_keep_in_fp32_modules", None) or ())
    linear = {name: part.weight for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    if not _is_of_transformers(module):
        return [weight for name, weight in linear.items() if not _is_among(f"{name}.weight", kept)]
    from transformers.quantizers.base import get_keys_to_not_convert  # takes seconds
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept += get_keys_to_not_convert(module)
    end = "" if kind == "nf4" else ".weight"
    return [weight for name, weight in linear.items() if should_convert_module(name + end, kept)]


def _is_of_transformers(module: nn.Module) -> bool:
    return hasattr(module, "all_tied_weights_keys")


def _float32_names(module: nn.Module, dtype: torch.dtype) -> Collection[str]:
    """Names of parts that stay in float32: of diffusers in each other dtype, of transformers some in float16 alone."""
    always = set(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
    some = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    if dtype == torch.float32:
        return ()
    return always | some if dtype == torch.float16 or not _is_of_transformers(module) else always


def _is_among(parameter: str, names: Collection[str]) -> bool:
    return any(f"{name}." in parameter for name in names)
