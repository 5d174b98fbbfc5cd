"""What of a transformer's call would change its blocks, and so is not served."""

from __future__ import annotations

from collections.abc import Collection

from plugin.families.base import Inputs

# Arguments of forwards that change what the blocks do, or add to what they return.
_NOT_SERVED = {
    "controlnet_block_samples": "ControlNet residuals",
    "controlnet_single_block_samples": "ControlNet residuals",
    "block_controlnet_hidden_states": "ControlNet residuals",
    "skip_layers": "skipped layers",
    "kv_cache": "keys and values that are kept on the module",
    "kv_caches": "keys and values that are kept on the module",
}


def check_call(inputs: Inputs, attention_options: Collection[str] = ()) -> None:
    """Checks that a call changes nothing in the blocks.

    Args:
        inputs: the arguments of the forward.
        attention_options: what the attention's keyword arguments may hold.

    Raises:
        ValueError: it does; the message names the argument.
    """
    for name, value in inputs.items():
        if name in _NOT_SERVED and value is not None:
            raise ValueError(f"{name} is given, must be left out: {_NOT_SERVED[name]} are not served")
        if name.endswith("attention_kwargs") and (others := set(value or ()) - set(attention_options)):
            names = ", ".join(sorted(others))
            raise ValueError(f"{name} has {names}, must be empty: adapters are not served per request")
