"""Runs workflows in API format (development/api-development/workflow-api-format).

- Order and caching (custom-nodes/backend/server_overview, "Execution Control Extras"): output nodes always run; of the
  others those whose inputs, widgets or IS_CHANGED differ from the last run. A node whose IS_CHANGED is not equal to
  what it was has changed, and a NaN is equal to nothing.
- Arguments: all required and hidden inputs, and the optional ones that are connected.
- Lists (custom-nodes/backend/lists): data between nodes are lists, mostly of length one; a node runs once for each
  entry of the longest input, and shorter ones repeat their last entry. INPUT_IS_LIST and OUTPUT_IS_LIST change that.
- Results: a tuple as RETURN_TYPES has it, or {"ui": …, "result": …} (development/comfyui-server/comms_messages, which
  also has the messages).

The pages do not say whether IS_CHANGED gets values that come from other nodes; here it gets all.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.comfyui.host import Host, InterruptProcessingException
from tests.support.comfyui.inputs import hidden_of, inputs_of
from tests.support.comfyui.validation import Prompt, is_link, needed, validate

Outputs = list[list[Any]]  # of a node: for each output a list


@dataclass
class Run:
    """What a run did.

    Attributes:
        id: `prompt_id` of the messages.
        outputs: of each node that has run or was cached.
        ui: what a node gave the page.
        ran: the nodes that ran, in order.
        messages: (event, data), as the page gets them.
        error: what ended it; None where it went well.
    """

    id: str
    outputs: dict[str, Outputs] = field(default_factory=dict)
    ui: dict[str, dict[str, Any]] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    error: Exception | None = None

    def output(self, node: str, slot: int = 0) -> Any:
        """The only value of an output."""
        if self.error is not None:
            raise self.error
        (value,) = self.outputs[node][slot]
        return value

    @property
    def ended(self) -> str:
        """The event that ended it: execution_success, execution_interrupted or execution_error."""
        return self.messages[-1][0]


@dataclass(frozen=True)
class _Kept:
    signature: Any
    outputs: Outputs


class Executor:
    """A ComfyUI with some node classes.

    Args:
        nodes: name -> class.
        titles: name -> what the page calls it.
        host: what nodes can reach.
    """

    def __init__(self, nodes: Mapping[str, type], titles: Mapping[str, str], host: Host) -> None:
        self.nodes = nodes
        self.titles = titles
        self.host = host
        self._kept: dict[str, _Kept] = {}
        self._instances: dict[tuple[str, str], Any] = {}
        self._count = itertools.count(1)

    def object_info(self) -> dict[str, dict[str, Any]]:
        """What the route /object_info tells of each class, as far as a test needs it."""
        return {
            name: {"inputs": inputs_of(node), "output": node.RETURN_TYPES, "title": self.titles.get(name, name)}  # type: ignore[attr-defined]
            for name, node in self.nodes.items()
        }

    def run(self, prompt: Prompt, workflow: Mapping[str, Any] | None = None) -> Run:
        """Runs a workflow.

        Args:
            prompt: in API format.
            workflow: the same in the page's format, for files.

        Raises:
            Invalid: it does not begin.
        """
        order = needed(self.nodes, prompt)
        validate(self.nodes, prompt, order)
        run = Run(str(next(self._count)))
        run.messages.append(("execution_start", {"prompt_id": run.id}))
        self.host.begin()
        signatures: dict[str, Any] = {}
        for node in order:
            try:
                self._step(prompt, node, run, signatures, {} if workflow is None else {"workflow": workflow})
            except InterruptProcessingException as error:
                self._end(run, "execution_interrupted", node, prompt, error)
                return run
            except Exception as error:
                self._end(run, "execution_error", node, prompt, error)
                return run
        run.messages.append(("execution_success", {"prompt_id": run.id}))
        return run

    def _end(self, run: Run, event: str, node: str, prompt: Prompt, error: Exception) -> None:
        run.error = error
        data = {"node_id": node, "node_type": prompt[node]["class_type"], "executed": [*run.ran]}
        run.messages.append((event, {"prompt_id": run.id, **data, "exception_message": str(error)}))

    def _step(
        self, prompt: Prompt, node: str, run: Run, signatures: dict[str, Any], extra_pnginfo: dict[str, Any]
    ) -> None:
        name, given = prompt[node]["class_type"], prompt[node]["inputs"]
        cls = self.nodes[name]
        arguments = {
            key: run.outputs[value[0]][value[1]] if is_link(value) else [value]
            for key, value in given.items()
            if key in inputs_of(cls)
        }
        signatures[node] = self._signature(cls, prompt, node, arguments, signatures)
        kept = self._kept.get(node)
        if kept is not None and kept.signature == signatures[node] and not getattr(cls, "OUTPUT_NODE", False):
            run.outputs[node] = kept.outputs
            run.messages.append(("execution_cached", {"prompt_id": run.id, "nodes": [node]}))
            return
        run.messages.append(("executing", {"prompt_id": run.id, "node": node}))
        sources = {"UNIQUE_ID": node, "PROMPT": prompt, "EXTRA_PNGINFO": extra_pnginfo}
        hidden = {key: [sources[kind]] for key, kind in hidden_of(cls).items()}
        instance = self._instances.setdefault((node, name), cls())
        self.host.executing = (node, threading.get_ident())
        try:
            results = _mapped(instance, {**arguments, **hidden})
        finally:
            self.host.executing = None
        run.ran.append(node)
        run.outputs[node] = _outputs_of(cls, results)
        self._kept[node] = _Kept(signatures[node], run.outputs[node])
        if ui := _ui_of(results):
            run.ui[node] = ui
            run.messages.append(("executed", {"prompt_id": run.id, "node": node, "output": ui}))

    @staticmethod
    def _signature(
        cls: type, prompt: Prompt, node: str, arguments: dict[str, list[Any]], signatures: Mapping[str, Any]
    ) -> Any:
        """What decides whether a node has changed: its class, widgets, what it is linked to, and IS_CHANGED."""
        each = prompt[node]
        parts = [
            (key, (signatures[value[0]], value[1]) if is_link(value) else value)
            for key, value in sorted(each["inputs"].items())
        ]
        changed = getattr(cls, "IS_CHANGED", None)
        return each["class_type"], parts, None if changed is None else _each(changed, arguments)


def _each(function: Any, arguments: Mapping[str, list[Any]]) -> list[Any]:
    """The results for each entry of the longest argument."""
    count = max((len(values) for values in arguments.values()), default=1)
    return [
        function(**{name: values[min(place, len(values) - 1)] for name, values in arguments.items()})
        for place in range(count)
    ]


def _mapped(instance: Any, arguments: Mapping[str, list[Any]]) -> list[Any]:
    function = getattr(instance, instance.FUNCTION)
    if getattr(instance, "INPUT_IS_LIST", False):
        return [function(**arguments)]
    return _each(function, arguments)


def _outputs_of(cls: Any, results: list[Any]) -> Outputs:
    tuples = [result.get("result", ()) if isinstance(result, dict) else result for result in results]
    for each in tuples:
        assert isinstance(each, tuple), f"{cls.__name__} returns a tuple corresponding to the RETURN_TYPES"
        assert len(each) == len(cls.RETURN_TYPES), f"{cls.__name__} has {len(cls.RETURN_TYPES)} outputs"
    are_lists = getattr(cls, "OUTPUT_IS_LIST", (False,) * len(cls.RETURN_TYPES))
    return [
        [value for each in tuples for value in (each[slot] if is_list else [each[slot]])]
        for slot, is_list in enumerate(are_lists)
    ]


def _ui_of(results: list[Any]) -> dict[str, Any]:
    """What the node gave the page; of several runs of it one behind the other."""
    joined: dict[str, list[Any]] = {}
    for result in results:
        for key, values in (result.get("ui", {}) if isinstance(result, dict) else {}).items():
            joined.setdefault(key, []).extend(values)
    return joined
