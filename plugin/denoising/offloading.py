"""Encoders and autoencoders that are not on the model's device all the time: on the CPU, or there for a call alone.

A pipeline of diffusers calls a stand-in in their place, which moves what goes in and comes out and sees to it that the
weights are there. So nothing is hooked to the modules that all requests share, and none moves what another one uses.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.utils import send_to_device
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.models.autoencoders.vae import AutoencoderMixin
from torch import nn
from transformers import PreTrainedModel

from plugin.denoising.idle_weights import IdleWeights
from plugin.denoising.unserved import NotServed, has_hooks

Offload = Sequence[tuple[str, str]]  # (component, "cpu" or "idle"), as `PipelineSource.offload` has them

_CPU = torch.device("cpu")
_BASES = (nn.Module, ModelMixin, AutoencoderMixin, PreTrainedModel)
# Methods of modules that move, cast or replace weights.
_CHANGING = frozenset(
    ("apply", "bfloat16", "cpu", "cuda", "double", "float", "half", "load_state_dict", "to_empty", "type", "xpu")
)


def check_offload(pipe: DiffusionPipeline, offload: Offload) -> None:
    """Checks that what is to be offloaded can be.

    Args:
        pipe: the pipeline.
        offload: what is to be offloaded.

    Raises:
        ValueError: it is no encoder or autoencoder of the pipeline, or not a known way; or it has hooks already.
    """
    components = pipe.components
    known = [name for name, each in components.items() if isinstance(each, nn.Module) and not _denoises(name)]
    kind = type(pipe).__name__
    for name, way in offload:
        if name not in known:
            raise ValueError(f"offload names {name!r}, must be an encoder or autoencoder of {kind}: {', '.join(known)}")
        if way not in ("cpu", "idle"):
            raise ValueError(f"offload of {name} is {way!r}, must be 'cpu' or 'idle'")
        if has_hooks(components[name]):
            raise ValueError(f"offload names {name!r}, which has hooks that offload it, must have none: leave one out")
    names = [name for name, _ in offload]
    if len({*names}) < len(names):
        raise ValueError(f"offload is {', '.join(names)}, must name each component once")


def move(pipe: DiffusionPipeline, device: str | torch.device, offload: Offload) -> DiffusionPipeline:
    """The pipeline, with all components on a device but those that are offloaded, which stay where they are.

    Args:
        pipe: the pipeline.
        device: of the model.
        offload: what is offloaded.

    Raises:
        ValueError: as `check_offload`.
    """
    check_offload(pipe, offload)
    if not offload:
        return pipe.to(device)
    stay = {name for name, _ in offload}
    for name, component in pipe.components.items():
        if isinstance(component, nn.Module) and name not in stay:
            component.to(device)
    return pipe


def stand_ins(
    pipe: DiffusionPipeline, device: torch.device, offload: Offload, folder: Path | None = None
) -> dict[str, Offloaded]:
    """What takes the place of the components that are offloaded, by name.

    Those to which diffusers or accelerate have hooked an offloading of their own have a stand-in too, which lets one
    call at a time into them: their hooks know of no other call.

    Args:
        pipe: the loaded pipeline.
        device: of the model.
        offload: what is offloaded.
        folder: as of `IdleWeights`.

    Raises:
        ValueError: as `check_offload` and `IdleWeights`.
        OSError: as `IdleWeights`.
    """
    check_offload(pipe, offload)
    found = {}
    for name, way in offload:
        component = pipe.components[name]
        if way == "idle":
            found[name] = Offloaded(component, ComponentPlace(device, device, IdleWeights(component, device, folder)))
        elif device.type != "cpu":
            found[name] = Offloaded(component.to(_CPU), ComponentPlace(device, _CPU))
    # One lock for all of them: accelerate's hook of one component may move another.
    alone = ComponentPlace(device, device, lock=threading.RLock())
    for name, component in pipe.components.items():
        if isinstance(component, nn.Module) and not _denoises(name) and has_hooks(component):
            found[name] = Offloaded(component, alone)
    return found


@dataclass(frozen=True)
class ComponentPlace:
    """Where the calls of a component run.

    Attributes:
        device: the model's, where a pipeline finds the results.
        runs_on: where the calls compute.
        weights: those that are there for calls alone; None for weights that stay.
        lock: held by each call; None where calls run side by side.
    """

    device: torch.device
    runs_on: torch.device
    weights: IdleWeights | None = None
    lock: AbstractContextManager[Any] | None = None

    def turn(self) -> AbstractContextManager[Any]:
        """Held by a call as long as it runs."""
        return self.weights.in_use() if self.weights is not None else self.lock or nullcontext()

    @property
    def idle_bytes(self) -> int:
        """Bytes that calls bring to the model's device."""
        return 0 if self.weights is None else self.weights.nbytes


class Offloaded:
    """The stand-in for an encoder or autoencoder, or for a part of one: called and read like it, from any thread.

    It says that it is on the model's device, so that a pipeline hands its inputs over there and goes on there with the
    results. A copy is a stand-in for a copy of the module, at the same place; what is set on it is set on its module.

    Args:
        module: the component.
        place: where its calls run.

    Attributes:
        place: the same.
    """

    def __init__(self, module: nn.Module, place: ComponentPlace) -> None:
        self.__dict__.update(_module=module, place=place)

    @property  # type: ignore[misc]
    def __class__(self) -> type[Any]:  # pipelines ask what kind of autoencoder they have
        return type(self._module)

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.place.device

    def __copy__(self) -> Offloaded:
        return Offloaded(copy.copy(self._module), self.place)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._compute(self._module, *args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._module, name, value)

    def __getattr__(self, name: str) -> Any:
        """What the module has. Its methods run where the weights are, its parts are stand-ins too, and its weights are
        copies on the model's device."""
        value = getattr(self._module, name)
        if isinstance(value, torch.Tensor):
            with self.place.turn():
                return value.detach().to(self.place.device, copy=True)
        if name in _CHANGING:
            return partial(self._refuse, name)
        if isinstance(value, type) or not callable(value):
            return value
        if isinstance(value, nn.Module):
            return self._given(value)
        return partial(self._ask if _reads_no_weights(name) else self._compute, value)

    def to(self, *args: Any, dtype: torch.dtype | None = None, **_: Any) -> Offloaded:
        """The same: its device is decided, and so is its dtype.

        Raises:
            NotServed: another dtype.
        """
        wanted = next((each for each in (dtype, *args) if isinstance(each, torch.dtype)), self._module.dtype)
        if wanted != self._module.dtype:
            self._refuse("to")
        return self

    def _compute(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        moves = self.place.runs_on != self.place.device
        if moves:
            args, kwargs = send_to_device((args, kwargs), self.place.runs_on)
        with self.place.turn():
            result = function(*args, **kwargs)
        return self._given(_sent(result, self.place.device) if moves else result)

    def _ask(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._given(function(*args, **kwargs))

    def _given(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            return self if value is self._module else Offloaded(value, self.place)
        return value

    def _refuse(self, name: str, *_: Any, **__: Any) -> NoReturn:
        raise NotServed(
            f"{name} of an offloaded {type(self._module).__name__} would change other requests too: call it on the "
            "pipeline before PipelineHost is made"
        )


def _reads_no_weights(name: str) -> bool:
    """Whether a method is one that all models have: to say what they consist of, or to set how they work."""
    return name != "forward" and any(hasattr(base, name) for base in _BASES)


def _sent(result: Any, device: torch.device) -> Any:
    """A call's result with all its tensors on a device, those of an encoder's distribution among them."""
    result = send_to_device(result, device)
    for each in _parts(result):
        if hasattr(each, "sample") and hasattr(each, "mode"):  # diffusers' distributions have no `to`
            each.__dict__.update({name: send_to_device(value, device) for name, value in vars(each).items()})
    return result


def _parts(result: Any) -> Iterator[Any]:
    if isinstance(result, Mapping):
        yield from result.values()
    elif isinstance(result, list | tuple):
        yield from result
    else:
        yield result


def _denoises(name: str) -> bool:
    return name.startswith("transformer")
