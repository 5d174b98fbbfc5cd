"""Model folders of tiny pipelines, for the tests of building."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.support.tiny import FAMILIES
from tests.support.tiny.declared import DECLARED
from tests.support.tiny.shallow import made_shallow

FLAVOUR = "tensorrt-rtx"


def write_model(folder: Path, name: str, dtype: str, *, shallow: bool = False, **parameters: str) -> Path:
    """A model folder whose pipeline is a saved tiny one, `made_shallow` or not, with further parameters; its path."""
    family = (FAMILIES | DECLARED)[name]
    pipe = family.make(folder, torch.float32)
    if shallow:
        made_shallow(pipe, family.transformer)
    pipe.save_pretrained(folder / "pipeline")
    parameters = {
        "pipeline": str(folder / "pipeline"),
        "engine": FLAVOUR,
        "dtype": dtype,
        "device": "cuda:0",
        "max_sequence_length": "16",
        "size_multiple": "8",
        "max_frames": "9",
        **{axis: str(length) for axis, length in {"height": 16, "width": 16, **family.sizes[0]}.items()},
        **parameters,
    }
    lines = [f'parameters {{ key: "{key}" value: {{ string_value: "{parameters[key]}" }} }}' for key in parameters]
    (folder / f"{name}_stream").mkdir()
    (folder / f"{name}_stream/config.pbtxt").write_text("\n".join(lines))
    return folder / f"{name}_stream"
