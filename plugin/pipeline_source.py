"""Where a model's pipeline comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PipelineSource:
    """What `load_pipeline` loads.

    Attributes:
        pipeline: a hub id, or a folder that `from_pretrained` can read.
        dtype: "float32", "bfloat16" or "float16", of all components.
        component_dtypes: (component, dtype) of components that want another one, for example a video autoencoder.
        components: (component, hub id or folder) of components that are not part of the pipeline's own repository, for
            example HiDream's Llama text encoder and its tokenizer.
        device: a torch device, "cpu" or "cuda:0".
        lora: a hub id, folder or file of LoRA weights that are fused into the pipeline, or None.
        lora_scale: the strength they are fused with.
        vae_tiling: decode in tiles, which needs less memory for large videos.
    """

    pipeline: str
    dtype: str = "float32"
    component_dtypes: tuple[tuple[str, str], ...] = ()
    components: tuple[tuple[str, str], ...] = ()
    device: str = "cpu"
    lora: str | None = None
    lora_scale: float = 1.0
    vae_tiling: bool = False
