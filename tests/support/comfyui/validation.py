"""What ComfyUI checks before a workflow begins (custom-nodes/backend/server_overview, "VALIDATE_INPUTS").

By default required inputs are there, links have the type of their input, and constants their type, range and choices.
A class method VALIDATE_INPUTS gets the constants that its signature names, all of them with **kwargs, and these do not
run through the default rules; with an argument `input_types` the types of links are not checked. Only what leads to an
output is checked (development/comfyui-server/execution_model_inversion_guide).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from tests.support.comfyui.inputs import Input, inputs_of

Prompt = Mapping[str, Mapping[str, Any]]  # a workflow in API format
_PYTHON = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}


class Invalid(Exception):
    """A workflow that does not begin; the route /prompt answers with `errors`, node -> sentences."""

    def __init__(self, errors: dict[str, list[str]]) -> None:
        super().__init__("; ".join(f"{node}: {each}" for node, texts in errors.items() for each in texts))
        self.errors = errors


def is_link(value: Any) -> bool:
    """Whether an input comes from another node: (its id, the number of its output)."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def needed(nodes: Mapping[str, type], prompt: Prompt) -> list[str]:
    """The nodes that lead to an output, each behind those that it needs.

    Raises:
        Invalid: a node of a class that is not there, or no output.
    """
    unknown = {node: [f"{each['class_type']} is unknown"] for node, each in prompt.items() if _unknown(nodes, each)}
    if unknown:
        raise Invalid(unknown)
    found: dict[str, None] = {}

    def visit(node: str) -> None:
        for value in prompt[node]["inputs"].values():
            if is_link(value) and value[0] not in found:
                visit(value[0])
        found[node] = None

    outputs = [node for node, each in prompt.items() if getattr(nodes[each["class_type"]], "OUTPUT_NODE", False)]
    if not outputs:
        raise Invalid({"": ["the prompt has no outputs"]})
    for node in outputs:
        visit(node)
    return [*found]


def validate(nodes: Mapping[str, type], prompt: Prompt, order: list[str]) -> None:
    """Checks the nodes of a workflow.

    Raises:
        Invalid: any of them.
    """
    errors = {node: [*_errors(nodes, prompt, node)] for node in order}
    if any(errors.values()):
        raise Invalid({node: texts for node, texts in errors.items() if texts})


def _unknown(nodes: Mapping[str, type], each: Mapping[str, Any]) -> bool:
    return each["class_type"] not in nodes


def _errors(nodes: Mapping[str, type], prompt: Prompt, node: str) -> Iterator[str]:
    cls, given = nodes[prompt[node]["class_type"]], prompt[node]["inputs"]
    wanted = inputs_of(cls)
    constants = {name: value for name, value in given.items() if name in wanted and not is_link(value)}
    own = getattr(cls, "VALIDATE_INPUTS", None)
    signature = inspect.getfullargspec(own) if own is not None else None
    received = constants if signature and signature.varkw else {}
    if signature:
        received = received or {name: value for name, value in constants.items() if name in signature.args}
    types_are_checked = signature is None or "input_types" not in signature.args
    for name, each in wanted.items():
        if name not in given:
            if each.required:
                yield f"{name}: required input is missing"
        elif is_link(given[name]):
            kind = _type_of(nodes, prompt, given[name])
            if types_are_checked and kind != each.type:
                yield f"{name}: {kind} is linked, must be {each.type}"
        elif name not in received:
            yield from _default_rules(each, given[name])
    if own is not None:
        answer = own(**received) if types_are_checked else own(**received, input_types={})
        if answer is not True:
            assert isinstance(answer, str), "VALIDATE_INPUTS should return True or a message"
            yield answer


def _type_of(nodes: Mapping[str, type], prompt: Prompt, link: list[Any]) -> str:
    source, slot = link
    kind: str = nodes[prompt[source]["class_type"]].RETURN_TYPES[slot]  # type: ignore[attr-defined]
    return kind


def _default_rules(each: Input, value: Any) -> Iterator[str]:
    if each.type == "COMBO":
        if value not in each.choices:
            yield f"{each.name}: {value!r} is not in the list"
    elif each.type in _PYTHON:
        kinds = _PYTHON[each.type]
        if not isinstance(value, kinds) or (isinstance(value, bool) and each.type != "BOOLEAN"):  # type: ignore[arg-type]
            yield f"{each.name}: {value!r} is no {each.type}"
        elif "min" in each.options and value < each.options["min"]:
            yield f"{each.name}: {value} is smaller than {each.options['min']}"
        elif "max" in each.options and value > each.options["max"]:
            yield f"{each.name}: {value} is larger than {each.options['max']}"
    else:
        yield f"{each.name}: {each.type} must be linked"
