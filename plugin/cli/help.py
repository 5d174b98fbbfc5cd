"""How help looks: no types beside flags and arguments, paragraphs as wide as the terminal, arguments without braces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption


class Command(TyperCommand):
    """A command with this help."""

    def __init__(self, *arguments: Any, help: str | None = None, **options: Any) -> None:
        super().__init__(*arguments, help=None if help is None else _unwrapped(help), **options)

    def get_params(self, ctx: Any) -> list[Any]:
        return _tidy(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


class Group(TyperGroup):
    """A group of commands with this help."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _tidy(super().get_params(ctx))


def _tidy(params: Sequence[Any]) -> list[Any]:
    """Without the types that Typer 0.29 shows where they say nothing: <bool> of a flag, <str> of an argument."""
    for param in params:
        if isinstance(param, TyperOption) and param.is_flag:
            param.metavar = ""
        if isinstance(param, TyperArgument):
            param.display_type_rich = _no_type  # type: ignore[method-assign]  # Typer has no setting for it
    return list(params)


def _no_type(ctx: object) -> None:
    return None


def _unwrapped(text: str) -> str:
    """Each paragraph on one line, for the terminal to wrap; indented ones, which are examples, as they are."""
    return "\n\n".join(
        paragraph if paragraph.startswith(" ") else " ".join(paragraph.split()) for paragraph in text.split("\n\n")
    )
