"""The stand-in of ComfyUI's interface itself: what its documentation says of nodes in general."""

from __future__ import annotations

import pytest

from tests.support.comfyui.executor import Executor
from tests.support.comfyui.host import Host
from tests.support.comfyui.validation import Invalid


class Number:
    RETURN_TYPES = ("INT",)
    FUNCTION = "give"
    ran = 0

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"value": ("INT", {"default": 0, "min": 0, "max": 9})}}

    def give(self, value):
        type(self).ran += 1
        return (value,)


class Several:
    RETURN_TYPES = ("INT",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    def give(self):
        return ([1, 2, 3],)


class Changing(Number):
    @classmethod
    def IS_CHANGED(cls, value):  # noqa: N802
        return float("nan")


class Add:
    RETURN_TYPES = ("INT",)
    FUNCTION = "add"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {"a": ("INT", {}), "b": ("INT", {"default": 0})},
            "optional": {"c": ("INT", {"forceInput": True})},
            "hidden": {"me": "UNIQUE_ID", "prompt": "PROMPT", "extra": "EXTRA_PNGINFO"},
        }

    def add(self, a, b, me, prompt, extra, c=100):
        return {"ui": {"sum": [(me, a + b + c, len(prompt), sorted(extra))]}, "result": (a + b + c,)}


class Whole(Add):
    INPUT_IS_LIST = True

    def add(self, a, b, me, prompt, extra, c=None):
        return (a + b,)


class Even(Number):
    @classmethod
    def VALIDATE_INPUTS(cls, value=0):  # noqa: N802
        return True if value % 2 == 0 else f"value is {value}, must be even"


@pytest.fixture
def ui(tmp_path):
    Number.ran = Changing.ran = 0
    nodes = {each.__name__: each for each in (Number, Several, Changing, Add, Whole, Even)}
    return Executor(nodes, {}, Host(tmp_path / "ComfyUI"))


def prompt(**nodes):
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def test_links_hidden_inputs_and_optional_ones_that_are_not_connected(ui):
    run = ui.run(prompt(n=("Number", {"value": 4}), s=("Add", {"a": ["n", 0], "b": 2})), {"nodes": []})
    assert run.ran == ["n", "s"]
    assert run.ui["s"]["sum"] == [("s", 106, 2, ["workflow"])]
    events = [event for event, _ in run.messages]
    assert events == ["execution_start", "executing", "executing", "executed", "execution_success"]


def test_what_leads_to_no_output_does_not_run(ui):
    run = ui.run(prompt(n=("Number", {"value": 4}), other=("Number", {"value": 5}), s=("Add", {"a": ["n", 0], "b": 2})))
    assert run.ran == ["n", "s"]
    with pytest.raises(Invalid, match="the prompt has no outputs"):
        ui.run(prompt(n=("Number", {"value": 4})))


def test_nodes_that_have_not_changed_are_cached_and_outputs_always_run(ui):
    first = prompt(n=("Number", {"value": 4}), s=("Add", {"a": ["n", 0], "b": 2}))
    ui.run(first)
    assert ui.run(first).ran == ["s"]
    assert Number.ran == 1
    assert ui.run(prompt(n=("Number", {"value": 5}), s=("Add", {"a": ["n", 0], "b": 2}))).ran == ["n", "s"]


def test_nan_is_never_what_it_was_and_what_follows_changes_too(ui):
    chain = prompt(c=("Changing", {"value": 1}), w=("Even", {"value": ["c", 0]}), s=("Add", {"a": ["w", 0], "b": 0}))
    ui.run(chain)
    assert ui.run(chain).ran == ["c", "w", "s"]


def test_a_list_is_handed_on_one_by_one_and_shorter_ones_repeat_their_last(ui):
    run = ui.run(prompt(l=("Several", {}), n=("Number", {"value": 9}), s=("Add", {"a": ["l", 0], "b": ["n", 0]})))
    assert run.outputs["s"] == [[110, 111, 112]]


def test_a_node_may_take_the_whole_list(ui):
    run = ui.run(prompt(l=("Several", {}), s=("Whole", {"a": ["l", 0], "b": 5})))
    assert run.outputs["s"] == [[[1, 2, 3, 5]]]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (10, "value: 10 is larger than 9"),
        (-1, "value: -1 is smaller than 0"),
        ("4", "value: '4' is no INT"),
        (True, "value: True is no INT"),
    ],
)
def test_constants_are_held_to_their_type_and_range_by_default(ui, value, sentence):
    with pytest.raises(Invalid) as refusal:
        ui.run(prompt(n=("Number", {"value": value}), s=("Add", {"a": ["n", 0], "b": 2})))
    assert refusal.value.errors == {"n": [sentence]}


def test_an_input_that_the_class_validates_is_not_held_to_its_range(ui):
    assert ui.run(prompt(n=("Even", {"value": 10}), s=("Add", {"a": ["n", 0], "b": 2}))).ended == "execution_success"
    with pytest.raises(Invalid, match="n: value is 3, must be even"):
        ui.run(prompt(n=("Even", {"value": 3}), s=("Add", {"a": ["n", 0], "b": 2})))


def test_missing_inputs_unknown_classes_and_links_of_another_type_are_refused(ui):
    for wrong, sentence in (
        (prompt(s=("Add", {"a": 1})), "s: b: required input is missing"),
        (prompt(s=("Nobody", {})), "s: Nobody is unknown"),
    ):
        with pytest.raises(Invalid, match=sentence):
            ui.run(wrong)


def test_an_exception_of_a_node_ends_the_run(ui):
    def broken(self, value):
        raise RuntimeError("on purpose")

    ui.nodes["Number"].give, kept = broken, ui.nodes["Number"].give
    try:
        run = ui.run(prompt(n=("Number", {"value": 1}), s=("Add", {"a": ["n", 0], "b": 2})))
    finally:
        ui.nodes["Number"].give = kept
    assert run.ended == "execution_error"
    assert run.messages[-1][1]["node_id"] == "n"
    assert run.messages[-1][1]["exception_message"] == "on purpose"
    with pytest.raises(RuntimeError, match="on purpose"):
        run.output("s")
