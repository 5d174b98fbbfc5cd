"""Which weights can be below 16 bits, and with which engines: what is checked before anything is loaded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from plugin.engine_specs import ENGINES, EngineSpec
from plugin.parameters import DENOISERS
from plugin.repository import InvalidConfig

Pairs = Sequence[tuple[str, str]]

_QUANTIZABLE = re.compile(r"transformer(_2)?|text_encoder(_\d+)?")


def is_gguf(place: str) -> bool:
    """Whether a component's place, of the parameter `components`, is a GGUF file."""
    return place.lower().endswith(".gguf")


def check_quantization(engine: str, quantization: Pairs, components: Pairs, lora: str | None = None) -> None:
    """Checks that what is to be quantised can be, and that the engine runs it.

    Args:
        engine: the engine's name.
        quantization: (component, "int8", "fp8" or "nf4").
        components: (component, hub id, folder or GGUF file) of components from elsewhere.
        lora: LoRA weights that are fused in, or None.

    Raises:
        InvalidConfig: it cannot; the message names the parameters.
    """
    given = f"parameter 'quantization' is {_text(quantization)!r}"
    files = {name for name, place in components if is_gguf(place)}
    for name, count in Counter(name for name, _ in quantization).items():
        if not _QUANTIZABLE.fullmatch(name):
            raise InvalidConfig(
                f"{given}, must be of components of linear layers: transformer, transformer_2, text_encoder, "
                f"text_encoder_2 and so on, not of {name}"
            )
        if count > 1:
            raise InvalidConfig(f"{given}, must name {name} once")
        if name in files:
            raise InvalidConfig(f"{given}, must be without {name}: its GGUF file in 'components' has its own")
    for name in sorted(files):
        if name not in DENOISERS:
            raise InvalidConfig(
                f"parameter 'components' has a GGUF file for {name}, must have a hub id or a folder: GGUF files are "
                "for transformer and transformer_2"
            )
        if lora is not None:
            raise InvalidConfig(
                f"parameter 'lora' is {lora!r}, must be left out with the GGUF file of {name} in 'components': nothing "
                "can be fused into one"
            )
    if engine in ENGINES:
        _check_engine(ENGINES[engine], quantization, sorted(files))


def _check_engine(spec: EngineSpec, quantization: Pairs, files: Sequence[str]) -> None:
    """Checks that an engine takes the quantised blocks, where there are some."""
    if spec.takes_quantized:
        return
    if quantized := [name for name, _ in quantization if name in DENOISERS]:
        raise InvalidConfig(
            f"parameter 'engine' is {spec.name!r}, must be torch with {quantized[0]} in parameter 'quantization': "
            f"{why_unquantized(spec)}"
        )
    if files:
        raise InvalidConfig(
            f"parameter 'engine' is {spec.name!r}, must be torch with a GGUF file for {files[0]} in parameter "
            f"'components': {why_unquantized(spec)}"
        )


def why_unquantized(spec: EngineSpec) -> str:
    """Why an engine takes no quantised blocks, and what there is in its place."""
    if spec.needs_server:
        return f"{spec.name} calls another model, which has parameters of its own"
    reason = f"{spec.name} compiles or copies weights of 16 or 32 bits"
    if spec.flavour is not None and not spec.fp8:
        reason += f", and TensorRT's own fp8 is the engine {spec.name}-fp8"
    return reason


def _text(pairs: Pairs) -> str:
    return ", ".join(f"{name}={value}" for name, value in pairs)
