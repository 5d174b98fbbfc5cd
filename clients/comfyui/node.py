"""What the nodes have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from .checks import refusal
from .known import Known
from .limits import WIDE
from .widgets import Input

Inputs = dict[str, dict[str, Input]]  # required, optional, hidden -> name -> input


class Node:
    """A node class, as docs.comfy.org/custom-nodes/backend/server_overview has it.

    Attributes:
        known: what the server of the environment publishes; set where ComfyUI gets the class.
    """

    known: ClassVar[Known]
    CATEGORY = "triton-taylorseer"


class Checked(Node):
    """A node whose widgets set fields of a request."""

    @classmethod
    def VALIDATE_INPUTS(cls, **widgets: Any) -> bool | str:  # noqa: N802
        # In place of ComfyUI's own check: the ranges of the widgets may be those of other models.
        return refusal(widgets, WIDE) or True
