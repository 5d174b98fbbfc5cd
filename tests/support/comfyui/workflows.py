"""Workflows in the page's format, and the API format that the page makes of them.

The page's format: specs/workflow_json_0.4. What `graphToPrompt` makes of it ("Prompt" of
custom-nodes/js/javascript_objects_and_hijacking): of each node its class, and of each input the widget's value, or (id
of the node, number of the output) of a link, the id as text; other unconnected inputs are left out. Widgets' values are
a list in the order of the inputs; `control_after_generate` is a widget of its own behind its number
(custom-nodes/v3_migration, the same page). An input that is a widget and linked too "holds a reference to the widget in
.widget", and its value stays in the list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.support.comfyui.inputs import Input, inputs_of
from tests.support.paths import ROOT

EXAMPLES = ROOT / "clients/comfyui/example_workflows"
AFTER_GENERATE = ("fixed", "increment", "decrement", "randomize")


def read(path: Path) -> dict[str, Any]:
    """The workflow in a file."""
    workflow: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return workflow


def widgets_of(inputs: Mapping[str, Input], values: list[Any]) -> Iterator[tuple[str, Any]]:
    """(name, value) of each widget of a node, `control_after_generate` among them."""
    left = iter(values)
    for each in inputs.values():
        if each.is_widget:
            yield each.name, next(left)
            if each.options.get("control_after_generate"):
                chosen = next(left)
                assert chosen in AFTER_GENERATE, chosen
                yield "control_after_generate", chosen
    assert next(left, None) is None, "more values than widgets"


def api_format(workflow: Mapping[str, Any], nodes: Mapping[str, type]) -> dict[str, Any]:
    """The API format of a workflow in the page's format, without titles."""
    links = {link[0]: link for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        inputs = inputs_of(nodes[node["type"]])
        given = dict(widgets_of(inputs, node.get("widgets_values", [])))
        given.pop("control_after_generate", None)
        for socket in node.get("inputs", []):
            if socket["link"] is not None:
                _, source, slot, *_ = links[socket["link"]]
                given[socket["name"]] = [str(source), slot]
        ordered = {name: given[name] for name in inputs if name in given}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": ordered}
    return prompt


def check(workflow: Mapping[str, Any], nodes: Mapping[str, type]) -> None:
    """Holds a workflow in the page's format to the specification, and its links to both of their ends.

    Raises:
        AssertionError: something does not fit.
    """
    assert workflow["version"] == 0.4
    by_id = {node["id"]: node for node in workflow["nodes"]}
    assert workflow["last_node_id"] == max(by_id)
    assert workflow["last_link_id"] == max(link[0] for link in workflow["links"])
    for node in workflow["nodes"]:
        assert {"id", "type", "pos", "size", "flags", "order", "mode", "properties"} <= node.keys()
        cls: Any = nodes[node["type"]]
        sockets = [(each.name, each.type) for each in inputs_of(cls).values() if not each.is_widget]
        given = node.get("inputs", [])
        assert [(each["name"], each["type"]) for each in given if "widget" not in each] == sockets, node["type"]
        assert all(each["widget"]["name"] == each["name"] for each in given if "widget" in each)
        names = getattr(cls, "RETURN_NAMES", cls.RETURN_TYPES)
        outputs = [(each["name"].lower(), each["type"]) for each in node.get("outputs", [])]
        assert outputs == [(name.lower(), kind) for name, kind in zip(names, cls.RETURN_TYPES, strict=True)]
    for link, source, slot, target, place, kind in workflow["links"]:
        assert link in by_id[source]["outputs"][slot]["links"]
        assert by_id[source]["outputs"][slot]["type"] == kind
        assert by_id[target]["inputs"][place]["link"] == link
        assert by_id[target]["inputs"][place]["type"] in (kind, "*")
