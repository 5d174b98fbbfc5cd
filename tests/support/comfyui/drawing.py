"""Draws a workflow file as SVG: `python -m tests.support.comfyui.drawing` writes a picture beside each example.

It shows what the file has: each node with its sockets, widgets and values, and the links. It is no screenshot.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from tests.support.comfyui.inputs import inputs_of
from tests.support.comfyui.loading import comfyui
from tests.support.comfyui.workflows import EXAMPLES, read, widgets_of

_ROW, _HEAD, _PAD, _MARGIN = 22, 28, 10, 30  # pixels
_CHARACTER = 6.7  # pixels of one character of the font, about
_COLOURS = {
    "IMAGE": "#64b5f6",
    "MASK": "#81c784",
    "STRING": "#9e9e9e",
    "FLOAT": "#b0bec5",
    "VIDEO": "#ffb74d",
    "TRITON_TAYLORSEER_SERVER": "#76b900",
    "TRITON_TAYLORSEER_CACHE": "#ba68c8",
}
_STYLE = "text{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#dddddd}.name{fill:#999999}.title{fill:#ffffff}"


def drawn(name: str, workflow: Mapping[str, Any], nodes: Mapping[str, type], titles: Mapping[str, str]) -> str:
    """The SVG of a workflow.

    Args:
        name: of its file, for the line below the picture.
        workflow: in the page's format.
        nodes: the classes, by name.
        titles: what the page calls them.
    """
    left = min(node["pos"][0] for node in workflow["nodes"]) - _MARGIN
    top = min(node["pos"][1] for node in workflow["nodes"]) - _MARGIN
    width = max(node["pos"][0] + node["size"][0] for node in workflow["nodes"]) + _MARGIN - left
    height = max(node["pos"][1] + node["size"][1] for node in workflow["nodes"]) + _MARGIN + _ROW - top
    by_id = {node["id"]: node for node in workflow["nodes"]}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} {top} {width} {height}" role="img" '
        f'aria-label="The workflow {escape(name)}">',
        f"<style>{_STYLE}</style>",
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="#202020"/>',
        *(_link(by_id, link) for link in workflow["links"]),
        *(line for node in workflow["nodes"] for line in _node(node, nodes, titles)),
        f'<text class="name" x="{left + _PAD}" y="{top + height - _PAD}">Drawn from {escape(name)}, not a screenshot '
        "of ComfyUI</text>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _link(by_id: Mapping[int, Mapping[str, Any]], link: list[Any]) -> str:
    _, source, slot, target, place, kind = link
    (x0, y0), (x1, y1) = _output(by_id[source], slot), _input(by_id[target], place)
    bend = max(40, abs(x1 - x0) // 2)
    path = f"M{x0} {y0}C{x0 + bend} {y0} {x1 - bend} {y1} {x1} {y1}"
    return f'<path d="{path}" fill="none" stroke="{_COLOURS.get(kind, "#dddddd")}" stroke-width="2.5"/>'


def _node(node: Mapping[str, Any], nodes: Mapping[str, type], titles: Mapping[str, str]) -> Iterator[str]:
    (x, y), (width, height) = node["pos"], node["size"]
    title = titles.get(node["type"], node["type"])
    yield f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="#353535" stroke="#111111"/>'
    yield f'<path d="M{x} {y + _HEAD}H{x + width}" stroke="#202020"/>'
    yield f'<text class="title" x="{x + _PAD}" y="{y + 19}">{escape(title)}</text>'
    for place, socket in enumerate(node.get("inputs", [])):
        yield from _socket(*_input(node, place), socket, _PAD, "start")
    for slot, socket in enumerate(node.get("outputs", [])):
        yield from _socket(*_output(node, slot), socket, -_PAD, "end")
    row = y + _HEAD + _ROW * _sockets(node)
    room = int((width - 3 * _PAD) / _CHARACTER)
    for name, value in widgets_of(inputs_of(nodes[node["type"]]), node.get("widgets_values", [])):
        text = " / ".join(str(value).splitlines())
        longest = room - len(name) - 1
        text = text if len(text) <= longest else f"{text[: longest - 1]}…"
        yield f'<rect x="{x + 5}" y="{row + 2}" width="{width - 10}" height="{_ROW - 4}" rx="8" fill="#282828"/>'
        yield f'<text class="name" x="{x + _PAD}" y="{row + 15}">{escape(name)}</text>'
        yield f'<text x="{x + width - _PAD}" y="{row + 15}" text-anchor="end">{escape(text)}</text>'
        row += _ROW
    assert row <= y + height, f"{title} is {height} high, its rows need {row - y}"


def _socket(x: int, y: int, socket: Mapping[str, Any], shift: int, anchor: str) -> Iterator[str]:
    yield f'<circle cx="{x}" cy="{y}" r="5" fill="{_COLOURS.get(socket["type"], "#dddddd")}"/>'
    yield f'<text x="{x + shift}" y="{y + 4}" text-anchor="{anchor}">{escape(socket["name"])}</text>'


def _sockets(node: Mapping[str, Any]) -> int:
    return max(len(node.get("inputs", [])), len(node.get("outputs", [])))


def _input(node: Mapping[str, Any], place: int) -> tuple[int, int]:
    return node["pos"][0], node["pos"][1] + _HEAD + _ROW * place + _ROW // 2


def _output(node: Mapping[str, Any], slot: int) -> tuple[int, int]:
    return node["pos"][0] + node["size"][0], node["pos"][1] + _HEAD + _ROW * slot + _ROW // 2


def main() -> None:
    """Writes the picture of each example beside it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        comfyui(Path(folder) / "ComfyUI", {"TRITON_TAYLORSEER_URL": "127.0.0.1:1"}) as ui,
    ):
        for path in EXAMPLES.glob("*.json"):
            path.with_suffix(".svg").write_text(drawn(path.name, read(path), ui.nodes, ui.titles), encoding="utf-8")


if __name__ == "__main__":
    main()
