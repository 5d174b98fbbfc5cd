"""Quantised weights for tests: how many bytes they are, GGUF files, and nf4 on a CPU."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import bitsandbytes
import diffusers
import gguf
import torch
import transformers
from diffusers.quantizers.bitsandbytes.utils import replace_with_bnb_linear
from torch import nn
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

_NF4_BLOCK, _NF4_CODE_BYTES = 64, 16 * 4  # weights that share a scale, and the table of the 16 values


def plain_config(kind: str, dtype: torch.dtype, library: Any) -> Any:
    """The quantisation as a user of diffusers or transformers writes it.

    Args:
        kind: "int8", "fp8" or "nf4".
        dtype: of what is not quantised.
        library: `diffusers` or `transformers`.
    """
    if kind == "nf4":
        return library.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    weights = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[kind]
    return library.TorchAoConfig(weights(set_inductor_config=False))


def plain_mapping(quantization: dict[str, str], dtype: torch.dtype) -> Any:
    """The same of several components, as a pipeline's `from_pretrained` takes it."""
    libraries = {name: diffusers if name.startswith("transformer") else transformers for name in quantization}
    mapping = {name: plain_config(kind, dtype, libraries[name]) for name, kind in quantization.items()}
    return diffusers.PipelineQuantizationConfig(quant_mapping=mapping)


def expected_bytes(module: nn.Module, kind: str, kept: tuple[str, ...] = ()) -> int:
    """What a module of 16 or 32 bits needs once its linear layers are quantised, from their shapes alone.

    int8: a byte of each weight, and of each row a scale of 4 bytes and a zero point of 1. fp8: a byte of each weight,
    and of each row a scale of 4 bytes. nf4: half a byte of each weight, 4 bytes of each 64, and a table.

    Args:
        module: the module before.
        kind: "int8", "fp8" or "nf4".
        kept: last names of linear layers that are not quantised.
    """
    quantized = {
        id(part.weight)
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and name.split(".")[-1] not in kept
    }
    total = 0
    for weight in [*dict.fromkeys([*module.parameters(), *module.buffers()])]:
        if id(weight) not in quantized:
            total += weight.numel() * weight.element_size()
            continue
        rows, columns = weight.shape
        if kind == "nf4":
            blocks = math.ceil(rows * columns / _NF4_BLOCK)
            total += math.ceil(rows * columns / 2) + 4 * blocks + _NF4_CODE_BYTES
        else:
            total += rows * columns + rows * {"int8": 5, "fp8": 4}[kind]
    return total


def write_gguf(model: nn.Module, path: Path, kind: str = "Q8_0") -> Path:
    """A model's weights as a GGUF file, with diffusers' names: those of linear layers in blocks of a kind, the others
    in float32.

    Args:
        model: of weights that torch holds itself.
        path: of the file.
        kind: a name of `gguf.GGMLQuantizationType`, of blocks of 32 weights.
    """
    blocks = gguf.GGMLQuantizationType[kind]
    linear = {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    writer = gguf.GGUFWriter(str(path), "flux")
    for name, tensor in model.state_dict().items():
        numbers = tensor.float().numpy()
        if name in linear and numbers.shape[-1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(numbers, blocks), raw_dtype=blocks)
        else:
            writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def nf4_on_cpu(transformer: Any, dtype: torch.dtype) -> Any:
    """A transformer in nf4 as diffusers makes one on a GPU, from the same parts: diffusers refuses to without one, and
    bitsandbytes itself computes on a CPU too.

    Its layers stay in training mode, in which bitsandbytes does not pack them for a CPU: of rows of fewer than 64
    numbers, as tiny models have, it cannot."""
    weights = transformer.state_dict()
    config = plain_config("nf4", dtype, diffusers)
    transformer = replace_with_bnb_linear(transformer, modules_to_not_convert=[], quantization_config=config)
    for name, part in transformer.named_modules():
        if isinstance(part, bitsandbytes.nn.Linear4bit):
            part.weight = bitsandbytes.nn.Params4bit(
                weights[f"{name}.weight"], requires_grad=False, compress_statistics=False, quant_type="nf4", module=part
            ).to("cpu")
            if part.bias is not None:
                part.bias = nn.Parameter(weights[f"{name}.bias"], requires_grad=False)
    transformer.is_loaded_in_4bit = True
    return transformer
