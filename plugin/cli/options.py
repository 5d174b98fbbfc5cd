"""Options that several commands share, and those that come from the table of request fields."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from plugin.fields import FIELDS, Field
from plugin.values import PictureFiles

LOCALHOST = "127.0.0.1"
TRITON = "localhost:8001"

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A model of the repository.")]
ModelRepository = Annotated[
    Path,
    typer.Option(metavar="FOLDER", help="Folder of models. Default: the one of this package.", show_default=False),
]
Host = Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0 for all.")]
Url = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="Triton's gRPC endpoint; grpc://, or grpcs:// for TLS, may precede it.")
]
Tls = Annotated[bool, typer.Option("--tls", help="Encrypt the connection, as grpcs:// does.")]
Ca = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Certificates, in PEM, of the authorities to trust; it means --tls. Default: gRPC's own."
    ),
]
Model = Annotated[str, typer.Option(metavar="NAME", help="The model's name.")]

_TYPES = {
    "TYPE_STRING": (str, "TEXT"),
    "TYPE_INT64": (int, "N"),
    "TYPE_INT32": (int, "N"),
    "TYPE_FP32": (float, "X"),
    "TYPE_BOOL": (bool, ""),
}


@dataclass(frozen=True)
class Connection:
    """Which model of which server a command talks to, and how."""

    url: str
    model: str
    tls: bool = False
    ca: Path | None = None
    retries: int = 0

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `clients.Client` and `clients.AsyncClient`."""
        return {
            "url": self.url,
            "model": self.model,
            "ssl": self.tls,
            "root_certificates": self.ca,
            "retries": self.retries,
        }


def with_fields(
    *names: str, meanings: Mapping[str, str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of some request fields.

    The command has a parameter `fields`, which gets a dict of all these fields: name -> value, None if not given. Of
    pictures it gets paths; an option of a field of any length can be repeated, and gives a list.

    Args:
        *names: of fields in `FIELDS` that have an option; none for all of them.
        meanings: help that replaces a field's own meaning, by name.
    """
    chosen = [field for field in FIELDS if field.option and (not names or field.name in names)]
    parameters = {_parameter(field): field for field in chosen}
    options = [_option(field, (meanings or {}).get(field.name, field.meaning)) for field in chosen]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def called(**arguments: Any) -> None:
            given = {field.name: arguments.pop(parameter) for parameter, field in parameters.items()}
            fields = {name: None if value == [] else value for name, value in given.items()}
            command(**arguments, fields=fields)

        own = inspect.signature(command, eval_str=True).parameters.values()
        listed = [each for one in own for each in (options if one.name == "fields" else [one])]
        called.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what Typer reads
            [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in listed]
        )
        return called

    return decorate


def _parameter(field: Field) -> str:
    assert field.option is not None
    return field.option.removeprefix("--").replace("-", "_")


def _option(field: Field, meaning: str) -> inspect.Parameter:
    kind, metavar = (Path, "FILE") if isinstance(field.values, PictureFiles) else _TYPES[field.type]
    panel = "Cache" if field.name.startswith("cache_") else "Request"
    option = typer.Option(field.option, help=meaning, metavar=metavar, rich_help_panel=panel)
    annotation = Annotated[(list[kind] if field.shape == (-1,) else kind) | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(_parameter(field), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
