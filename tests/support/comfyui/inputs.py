"""What a node class says of its inputs (custom-nodes/backend/server_overview, /datatypes and /more_on_inputs)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


@dataclass(frozen=True)
class Input:
    """One input of a node class.

    Attributes:
        name: of the argument.
        type: of the socket; COMBO for a list of choices, which are `choices`.
        options: min, max and so on.
        required: False for an input that may be left unconnected.
    """

    name: str
    type: str
    options: dict[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    required: bool = True

    @property
    def is_widget(self) -> bool:
        """Whether people set it in the node."""
        return self.type in WIDGETS and not self.options.get("forceInput", False)


def inputs_of(node: type) -> dict[str, Input]:
    """The inputs of a class, the required ones first."""
    types = node.INPUT_TYPES()  # type: ignore[attr-defined]
    assert set(types) <= {"required", "optional", "hidden"}, types.keys()
    assert "required" in types, "INPUT_TYPES returns a dict which must contain the key required"
    found = {}
    for section in ("required", "optional"):
        for name, spec in types.get(section, {}).items():
            assert isinstance(spec, tuple), f"{name}: the types are defined by a tuple"
            options = spec[1] if len(spec) > 1 else {}
            choices = tuple(spec[0]) if isinstance(spec[0], list) else ()
            kind = "COMBO" if choices else spec[0]
            found[name] = Input(name, kind, options, choices, section == "required")
    return found


def hidden_of(node: type) -> dict[str, str]:
    """Argument -> UNIQUE_ID, PROMPT or EXTRA_PNGINFO."""
    hidden: dict[str, str] = node.INPUT_TYPES().get("hidden", {})  # type: ignore[attr-defined]
    return hidden
