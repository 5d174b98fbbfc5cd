"""Models of this plugin in a pretended Triton."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from diffusers import FluxPipeline

from tests.support import pretend_triton
from tests.support.pretend_triton import MetricFamily, Triton
from tests.support.stream_models import PARAMETERS


@pytest.fixture(scope="session")
def thaw() -> Iterator[None]:
    """What models have hidden from Python's garbage collector is shown to it again at the end."""
    unfreeze = gc.unfreeze
    yield
    unfreeze()


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch, thaw: None) -> Iterator[Triton]:
    """A pretended server, whose models are unloaded at the end; a process that ends itself only writes that down."""
    server = Triton()
    monkeypatch.setattr(pretend_triton.InferenceRequest, "server", server, raising=False)
    monkeypatch.setattr(os, "_exit", server.exits.append)
    monkeypatch.setattr(os, "getppid", os.getpid)  # a server of its own: test processes side by side have one parent
    monkeypatch.setattr(gc, "unfreeze", lambda: None)  # each collection would walk all that the tests have loaded
    MetricFamily.families.clear()
    yield server
    for model in (*server.models.values(), *server.lost):
        if hasattr(model, "finalize"):
            model.finalize()


@pytest.fixture
def load_stream(triton: Triton, flux: FluxPipeline, tmp_path: Path) -> Callable[..., Any]:
    """Loads a tiny FLUX as `tiny_stream`, with some parameters of its own; `engine` wraps the transformer's engine."""
    from plugin.denoising.host import PipelineHost
    from plugin.engines.packer import PackSettings
    from plugin.triton_model.stream import StreamModel

    def load(engine: Callable[[Any], Any] | None = None, name: str = "tiny_stream", **parameters: str) -> Any:
        class Model(StreamModel):
            def load_host(self) -> PipelineHost:
                host = PipelineHost(flux, text_cache_bytes=2**20)
                if engine is not None:
                    host.engines["transformer"] = engine(host.engines["transformer"])
                host.pack(PackSettings())
                return host

        return triton.load(name, Model, tmp_path, PARAMETERS | parameters)

    return load


@pytest.fixture
def load_pair(load_stream: Callable[..., Any], triton: Triton, tmp_path: Path) -> Callable[..., Any]:
    """Loads `tiny_stream` as `load_stream` does, and the plain model `tiny`; returns the stream model."""
    from plugin.triton_model.front import FrontModel

    def load(**options: Any) -> Any:
        stream = load_stream(**options)
        triton.load("tiny", FrontModel, tmp_path)
        return stream

    return load
