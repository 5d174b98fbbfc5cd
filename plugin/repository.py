"""The files of a model repository, read without a server; light to import."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


class InvalidConfig(ValueError):
    """A parameter of config.pbtxt is unknown, missing or malformed; the message names it."""


def read_parameters(config_pbtxt: str) -> dict[str, str]:
    """The `parameters` of a config.pbtxt, name -> string value, parsed with Triton's own protobuf schema.

    Raises:
        InvalidConfig: the text is not a model configuration.
    """
    return {name: value.string_value for name, value in _parse(config_pbtxt).parameters.items()}


def read_max_batch_size(config_pbtxt: str) -> int:
    """The `max_batch_size` of a config.pbtxt; 0 if the model has no batch axis.

    Raises:
        InvalidConfig: the text is not a model configuration.
    """
    return _parse(config_pbtxt).max_batch_size


def _parse(config_pbtxt: str) -> Any:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        return text_format.Parse(config_pbtxt, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise InvalidConfig(f"config.pbtxt cannot be read: {error}") from None


def overrides(model: str, names: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The parameters that the environment overrides, name -> text.

    Args:
        model: the model's name, with or without `_stream`.
        names: the parameters' names.
        environment: of the process.
    """
    named = {name: variable(model, name) for name in names}
    return {name: environment[each] for name, each in named.items() if each in environment}


def variable(model: str, name: str) -> str:
    """The environment variable that overrides a parameter of a model, TAYLORSEER_<MODEL>_<PARAMETER>."""
    return re.sub(r"\W", "_", f"TAYLORSEER_{model.removesuffix('_stream')}_{name}").upper()


def models_to_download(repository: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The models whose pipeline is a hub id that this machine has not downloaded yet: name -> hub id."""
    missing = {}
    for path in sorted(repository.glob("*_stream/config.pbtxt")):
        name = path.parent.name.removesuffix("_stream")
        with suppress(InvalidConfig):  # the server reports it when it loads the model
            parameters = read_parameters(path.read_text(encoding="utf-8"))
            pipeline = (parameters | overrides(name, ["pipeline"], environment)).get("pipeline", ".")
            if not pipeline.startswith((".", "/")) and not _is_downloaded(pipeline):
                missing[name] = pipeline
    return missing


def stream_models(repository: Path) -> list[str]:
    """The models of this plugin that own a pipeline; a repository may hold other models too."""
    found = []
    for path in sorted(repository.glob("*_stream/config.pbtxt")):
        with suppress(InvalidConfig, OSError):
            if "pipeline" in read_parameters(path.read_text(encoding="utf-8")):
                found.append(path.parent.name)
    return found


def called_models(repository: Path, name: str, environment: Mapping[str, str]) -> list[str]:
    """The models that a served model calls: the `engine_model` of `<name>_stream`, if it has one."""
    with suppress(InvalidConfig, OSError):  # the server reports it when it loads the model
        parameters = read_parameters((repository / f"{name}_stream/config.pbtxt").read_text(encoding="utf-8"))
        parameters |= overrides(name, ["engine_model"], environment)
        return [parameters["engine_model"]] if "engine_model" in parameters else []
    return []


def _is_downloaded(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(hub_id, "model_index.json"), str)
