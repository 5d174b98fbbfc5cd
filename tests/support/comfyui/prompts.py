"""Builds workflows in API format: widgets have their defaults unless a test sets them, as on ComfyUI's page."""

from __future__ import annotations

from typing import Any

from tests.support.comfyui.executor import Executor
from tests.support.comfyui.inputs import inputs_of

NAME = "TritonTaylorSeer"  # begins those of the pack's nodes


def node(ui: Executor, kind: str, **inputs: Any) -> dict[str, Any]:
    """A node of a class of ComfyUI's or, by what follows `NAME`, of the pack's; a link is [id, output]."""
    name = kind if kind in ui.nodes else NAME + kind
    widgets = [each for each in inputs_of(ui.nodes[name]).values() if each.is_widget]
    defaults = {each.name: each.choices[0] if each.choices else each.options["default"] for each in widgets}
    return {"class_type": name, "inputs": {**defaults, **inputs}}


def pictures_of(
    ui: Executor, kind: str, url: str, cache: dict[str, Any] | None = None, **inputs: Any
) -> dict[str, Any]:
    """A workflow of one node that makes pictures ("make"), on servers ("server"), and previews of them ("shown").

    Args:
        url: of the servers; the node's own `model` and `preview` are those of the Server node.
        cache: widgets of a Cache Settings node, or None for no such node.
        inputs: of the node that makes them, and `model` and `preview`.
    """
    of_server = {name: inputs.pop(name) for name in ("model", "preview") if name in inputs}
    prompt = {"server": node(ui, "Server", url=url, **of_server)}
    if cache is not None:
        prompt["cache"] = node(ui, "Cache", **cache)
        inputs["cache"] = ["cache", 0]
    prompt["make"] = node(ui, kind, server=["server", 0], **inputs)
    prompt["shown"] = node(ui, "PreviewImage", images=["make", 0])
    return prompt


def given(ui: Executor, prompt: dict[str, Any], kind: str, name: str, value: Any) -> list[Any]:
    """A link to a value of a type (IMAGE, MASK and so on) that is put into a workflow."""
    ui.nodes[f"Given{kind}"].values[name] = value  # type: ignore[attr-defined]
    prompt[name] = node(ui, f"Given{kind}", name=name)
    return [name, 0]
