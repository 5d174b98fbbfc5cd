"""What the documents say, for tests: their code blocks, commands, links, headings and tables, by a Markdown parser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.support.paths import ROOT

_OF_FOLDERS = [
    ROOT / folder / "README.md"
    for folder in ("examples", "training", "clients/typescript", "clients/python", "clients/comfyui")
]
# Whose commands are to be run; those of the folders have tests of their own, or need what is not here.
WITH_COMMANDS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DOCUMENTS = [*WITH_COMMANDS, *_OF_FOLDERS]


@dataclass(frozen=True)
class Block:
    """A fenced block: its document, the line that it begins at, its language and its text."""

    path: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """For people and test ids."""
        return f"{self.path.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The shell commands, those of several lines as one."""
        joined = self.text.replace("\\\n", "\\\0")
        return [
            line.replace("\\\0", "\\\n") for line in joined.splitlines() if line.strip() and not line.startswith("#")
        ]


def tokens_of(path: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))


def blocks_of(path: Path) -> Iterator[Block]:
    """The fenced blocks; one without a language is a shell's."""
    for token in tokens_of(path):
        if token.type == "fence":
            assert token.map is not None
            yield Block(path, token.map[0] + 1, token.info.strip() or "bash", token.content)


def inline_code_of(path: Path) -> Iterator[str]:
    """What stands in backticks within text."""
    for token in _inline_of(path):
        if token.type == "code_inline":
            yield token.content


def links_of(path: Path) -> Iterator[str]:
    """The targets of links and pictures."""
    for token in _inline_of(path):
        target = token.attrGet("href") or token.attrGet("src")
        if target is not None:
            yield str(target)


def anchors_of(path: Path) -> set[str]:
    """The headings' anchors, as GitHub makes them."""
    titles = [after.content for token, after in pairwise(tokens_of(path)) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def tables_of(path: Path) -> dict[str, list[list[str]]]:
    """The rows of the tables under each heading, by its title; several in one section follow each other."""
    tables: dict[str, list[list[str]]] = {}
    heading = ""
    for token, after in pairwise(tokens_of(path)):
        if token.type == "heading_open":
            heading = after.content
        elif token.type == "tr_open":
            tables.setdefault(heading, []).append([])
        elif token.type in ("td_open", "th_open"):
            tables[heading][-1].append(after.content)
    return tables


def numbers_in(text: str) -> list[str]:
    """The numbers of a text, as they are written, without signs."""
    return re.findall(r"\d+(?:\.\d+)?", text)


def _inline_of(path: Path) -> Iterator[Token]:
    for token in tokens_of(path):
        yield from token.children or ()
