"""What a host does not serve, and says so: hooks, adapters and offloading on what all requests share.

With diffusers these change modules, and modules are shared here: a request that did it would change others, or nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.pipelines.pag.pag_utils import PAGMixin
from torch import nn

from plugin.families import FAMILY_OF_TRANSFORMER
from plugin.parameters import DENOISERS
from plugin.tasks import tasks_of

Adapters = tuple[object, ...]

_BEFORE = "before PipelineHost is made"
_OFFLOAD_INSTEAD = "PipelineHost's offload (the parameter of that name) offloads encoders and autoencoder"
# Methods of pipelines that change what the pipelines of a host share (diffusers 0.42.0: pipeline_utils, loaders).
_CHANGES = {
    **dict.fromkeys(
        (
            *("load_lora_weights", "load_lora_into_transformer", "load_lora_into_text_encoder", "fuse_lora"),
            *("unfuse_lora", "unload_lora_weights", "set_adapters", "delete_adapters", "enable_lora", "disable_lora"),
            *("set_lora_device", "load_attn_procs", "enable_lora_hotswap"),
        ),
        f"load and fuse adapters {_BEFORE}",
    ),
    **dict.fromkeys(
        ("load_textual_inversion", "unload_textual_inversion"), f"load the embeddings into the pipeline {_BEFORE}"
    ),
    **dict.fromkeys(
        ("load_ip_adapter", "unload_ip_adapter", "set_ip_adapter_scale"), "IP-Adapters are not served by a host"
    ),
    **dict.fromkeys(("to", "reset_device_map"), f"move the pipeline {_BEFORE}"),
    **dict.fromkeys(
        ("enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload"),
        _OFFLOAD_INSTEAD,
    ),
    **dict.fromkeys(
        (
            *("fuse_qkv_projections", "unfuse_qkv_projections", "enable_attention_slicing"),
            *(
                "disable_attention_slicing",
                "enable_xformers_memory_efficient_attention",
                "enable_freeu",
                "disable_freeu",
            ),
            "disable_xformers_memory_efficient_attention",
        ),
        f"set it on the pipeline {_BEFORE}",
    ),
}


class NotServed(ValueError):
    """Something that diffusers does and a host does not; the message says what to do instead."""


def check_pipeline(pipe: object, engine: object) -> None:
    """Checks that a host can serve a pipeline, and does with it what the pipeline itself would do.

    Args:
        pipe: the pipeline.
        engine: as `PipelineHost` takes it.

    Raises:
        TypeError: it is no pipeline, has no transformer, or runs other pipelines inside itself.
        NotServed: it is offloaded or spread over devices, its transformer has hooks or a cache of diffusers, or the
            engine cannot run it.
    """
    name, served = type(pipe).__name__, ", ".join(FAMILY_OF_TRANSFORMER)
    if not isinstance(pipe, DiffusionPipeline):
        raise TypeError(f"pipe is a {name}, must be a diffusers pipeline with a transformer of: {served}")
    transformers = [getattr(pipe, each, None) for each in DENOISERS]
    if not any(isinstance(each, nn.Module) for each in transformers):
        raise TypeError(f"{name} has no transformer, must be a pipeline with one of: {served}")
    check_class(pipe)
    if getattr(pipe, "hf_device_map", None):
        raise NotServed(f"{name} has a device_map, must be on one device: load it without one")
    if getattr(pipe, "_all_hooks", None):
        raise NotServed(
            f"{name} is offloaded, must stay on its device: leave enable_model_cpu_offload out. {_OFFLOAD_INSTEAD}"
        )
    for transformer in transformers:
        if transformer is not None:
            if getattr(transformer, "_cache_config", None) is not None:
                raise NotServed("the transformer has a cache of diffusers enabled, must have none: disable_cache()")
            check_hooks(transformer, parts=True)
    if getattr(pipe.config, "expand_timesteps", False) and isinstance(engine, str) and engine != "torch":
        raise NotServed(
            f"engine is {engine!r}, must be 'torch': {name} has a timestep for each token (expand_timesteps)"
        )


def check_class(pipe: DiffusionPipeline) -> None:
    """Checks that a pipeline calls its transformer itself.

    Raises:
        TypeError: it has others inside itself, which would share their state and know nothing of the cache; it has a
            scheduler for each frame, and no step that all frames share; or it exchanges the attention of the shared
            transformer at each call.
        NotServed: its guider hooks layers of the shared transformer, to skip them or their attention in a further call.
    """
    if isinstance(pipe, PAGMixin):
        raise TypeError(
            f"{type(pipe).__name__} exchanges the attention of the shared transformer at each call, must be a pipeline "
            "without perturbed-attention guidance"
        )
    if "DiffusionForcing" in type(pipe).__name__:
        raise TypeError(
            f"{type(pipe).__name__} has a scheduler for each frame, must be a pipeline of one: no step is known"
        )
    for name, guider in pipe.components.items():
        if isinstance(guider, BaseGuidance) and type(guider).prepare_models is not BaseGuidance.prepare_models:
            raise NotServed(
                f"{name} is a {type(guider).__name__}, which hooks layers of the shared transformer, must be one that "
                "changes none, as ClassifierFreeGuidance"
            )
    if inner := [name for name, value in vars(pipe).items() if isinstance(value, DiffusionPipeline)]:
        raise TypeError(f"{type(pipe).__name__} runs pipelines inside itself ({', '.join(inner)}): host these instead")


def check_arguments(pipe: DiffusionPipeline) -> None:
    """Checks that what a pipeline's call needs is among what a served request has.

    Raises:
        NotServed: it is not, as the picture of a pipeline that has no task.
    """
    name = type(pipe).__name__
    given = {"self", "prompt", "class_labels", *(each for task in tasks_of(name) for each in task.pictures)}
    needed = [
        each.name
        for each in inspect.signature(type(pipe).__call__).parameters.values()
        if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD and each.name not in given
    ]
    if needed:
        raise NotServed(f"{name} needs {', '.join(needed)}, which no request has: call it in process, by PipelineHost")


def check_hooks(transformer: nn.Module, *, parts: bool = False) -> None:
    """Checks that nothing is hooked to a transformer: a host calls its parts, and not at every step.

    A forward hook of a part is let be: it runs whenever that part does.

    Args:
        transformer: the shared module.
        parts: whether its parts are checked too, for what is hooked to them by libraries.

    Raises:
        NotServed: something is; the message says whose hook it is.
    """
    for module in transformer.modules() if parts else (transformer,):
        name = type(module).__name__
        if _hook_of_accelerate(module):
            raise NotServed(
                f"{name} has a hook of accelerate (offloading, or a device_map), must have none. {_OFFLOAD_INSTEAD}"
            )
        if _hook_of_diffusers(module):
            raise NotServed(
                f"{name} has a hook of diffusers (a cache, group offloading, casting), must have none. "
                f"{_OFFLOAD_INSTEAD}"
            )
    if transformer._forward_hooks or transformer._forward_pre_hooks:
        raise NotServed(
            f"{type(transformer).__name__} has a forward hook, must have none: a request's own transformer may have one"
        )


def has_hooks(module: nn.Module) -> bool:
    """Whether accelerate or diffusers have hooked anything to a module or its parts, which moves or casts weights."""
    return any(_hook_of_accelerate(part) or _hook_of_diffusers(part) for part in module.modules())


def _hook_of_accelerate(module: nn.Module) -> bool:
    return hasattr(module, "_hf_hook")


def _hook_of_diffusers(module: nn.Module) -> bool:
    return bool(getattr(getattr(module, "_diffusers_hook", None), "hooks", None))


def adapters_of(module: nn.Module) -> Adapters:
    """What of a module's adapters decides its results: names, which are active, scales; empty without any.

    Costs nothing where none was ever loaded.
    """
    if not getattr(module, "peft_config", None):
        return ()
    return tuple(_adapter_states(module))


def _adapter_states(module: nn.Module) -> Iterator[object]:
    for name, part in module.named_modules():
        if hasattr(part, "scaling") and hasattr(part, "active_adapters"):
            scales = tuple(sorted(part.scaling.items()))
            yield name, tuple(part.active_adapters), scales, bool(part.disable_adapters), tuple(part.merged_adapters)


def refusals(pipe: DiffusionPipeline) -> dict[str, Callable[..., Any]]:
    """For the pipelines of requests: what takes the place of the methods that would change what all requests share."""
    return {name: _refusal(name, instead) for name, instead in _CHANGES.items() if hasattr(type(pipe), name)}


def _refusal(name: str, instead: str) -> Callable[..., Any]:
    def refused(*_: Any, **__: Any) -> Any:
        raise NotServed(f"{name} of a request's pipeline would change other requests too: {instead}")

    return refused
