"""The Python door: caching for a diffusers pipeline in one's own process, without a server."""

from plugin.denoising.host import PipelineHost

__all__ = ["PipelineHost"]
