"""What runs the block stack at full steps."""

from __future__ import annotations

from typing import Protocol

import torch

from plugin.families.base import BlockInputs


class Engine(Protocol):
    """Runs the block stack of one model for any number of threads.

    Attributes:
        name: the engine's name, as in the model's configuration and in reports.
    """

    name: str

    def run(self, inputs: BlockInputs) -> torch.Tensor:
        """The block stack's output for one request's inputs.

        Args:
            inputs: the arguments of the family's block stack, by name.

        Returns:
            The feature, on the device and in the dtype of the inputs. It may be a buffer that the next call reuses.
        """
        ...
