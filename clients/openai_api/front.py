"""What the endpoints share: the server behind them, its models, and when it has room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request

from clients.openai_api.fetching import Place
from clients.openai_api.refusals import Places
from clients.openai_api.targets import Target
from clients.openai_api.video_jobs import VideoJobs
from triton_taylorseer_client.async_client import AsyncClient
from triton_taylorseer_client.endpoint import Endpoint, credentials
from triton_taylorseer_client.messages import Generation, InvalidArgument, Progress, Unavailable, UnknownModel
from triton_taylorseer_client.patience import seconds

Updates = AsyncGenerator[Progress | Generation, None]


@dataclass
class Front:
    """What the endpoints share.

    Attributes:
        triton: Triton's gRPC endpoint, as `AsyncClient` takes it.
        default_model: the model of requests that name none, or an alias; None for the first one that is ready.
            `MODEL:WIDTHxHEIGHT` has a size too, which replaces one that the model refuses.
        api_key: the key that clients must send as a bearer token; None to ask for none.
        timeout_s: seconds that a request may take; None for no limit but its own `deadline_ms`.
        root_certificates: a file with the authorities to trust, in PEM; it means TLS.
        aliases: other names of models, for clients that send a name of their own -> the model, in the same form.
        fetch_from: where pictures may be fetched from.
        server: a client for calls that are not about one model; set while the application runs.
        clients: one for each model that was asked for.
        places: of each model, promised to those it has refused.
        masks: keeps more than two masks from being read at once; one may take 400 MB.
        running: how far each picture is that is being made.
        videos: those that were asked for and are kept.

    Raises:
        ValueError: `triton`, `timeout_s`, `root_certificates`, `default_model` or an alias is no such thing.
    """

    triton: str
    default_model: str | None
    api_key: str | None
    timeout_s: float | None
    root_certificates: Path | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    fetch_from: tuple[Place, ...] = ()
    server: AsyncClient | None = None
    clients: dict[str, AsyncClient] = field(default_factory=dict)
    places: dict[str, Places] = field(default_factory=dict)
    masks: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    running: dict[object, Progress] = field(default_factory=dict)
    videos: VideoJobs = field(default_factory=VideoJobs)

    def __post_init__(self) -> None:
        seconds("timeout_s", self.timeout_s)
        credentials(Endpoint.of(self.triton).tls, self.root_certificates)
        self._targets = {name: Target.of(f"alias {name}", text) for name, text in self.aliases.items()}
        self._default = None if self.default_model is None else self._of_default(self.default_model)

    def client(self, model: str) -> AsyncClient:
        """The client of a model that Triton has; it is kept open."""
        if model not in self.clients:
            self.clients[model] = AsyncClient(self.triton, model, root_certificates=self.root_certificates)
        return self.clients[model]

    async def models(self) -> list[str]:
        """The models that are ready, the default one first.

        Raises:
            Unavailable: no server answers.
        """
        assert self.server is not None
        names = set(await self.server.ready_models())
        served = sorted(name for name in names if f"{name}_stream" in names)
        default = self._default.model if self._default else None
        return sorted(served, key=lambda name: name != default)

    async def some_models(self) -> list[str]:
        """The same, of which there is one at least.

        Raises:
            Unavailable: no server answers, or no model is ready.
        """
        models = await self.models()
        if not models:
            raise Unavailable(f"no model is ready at {self.triton}")
        return models

    async def served(self, model: str | None) -> Target:
        """The ready model that a request's `model` names; None and "" stand for the default one.

        Raises:
            UnknownModel: it is not ready.
            Unavailable: none is.
        """
        models = await self.some_models()
        target = self._named(model) if model else self._default or Target(models[0])
        if target.model not in models:
            name = model or self.default_model or ""
            alias = "" if target.model == name else f", which stands for {target.model}"
            raise UnknownModel(f"model is {name[:100]}{alias}, must be one that is ready: {', '.join(models)}")
        return target

    def when_to_return(self, refusal: Unavailable, model: str, places: int) -> Unavailable:
        """The refusal, with the time at which there are places for all who were refused before, and for this one."""
        if refusal.retry_after_s is not None:
            refusal.retry_after_s = self._places_of(model).promise(refusal.retry_after_s, places)
        return refusal

    async def stream(
        self, target: Target, fields: Mapping[str, Any], headers: Mapping[str, str], request_id: str
    ) -> Updates:
        """What `AsyncClient.stream` yields for one request, within the time limit of this front.

        A size that the model refuses is replaced by the target's, if it has one.
        """
        sent: Mapping[str, Any] | None = fields
        while sent is not None:
            try:
                async with aclosing(self._once(target.model, sent, headers, request_id)) as updates:
                    async for update in updates:
                        yield update
                return
            except InvalidArgument as refusal:
                sent = target.replaced(fields, refusal) if sent is fields else None
                if sent is None:
                    raise

    async def _once(
        self, model: str, fields: Mapping[str, Any], headers: Mapping[str, str], request_id: str
    ) -> Updates:
        updates = self.client(model).stream(**fields, timeout_s=self.timeout_s, headers=headers, request_id=request_id)
        job = object()
        self.running[job] = Progress(0, 1)
        try:
            async with aclosing(updates):
                async for update in updates:
                    if isinstance(update, Generation):
                        self._places_of(model).end()
                    else:
                        self.running[job] = update
                    yield update
        finally:
            del self.running[job]

    def _places_of(self, model: str) -> Places:
        return self.places.setdefault(model, Places())

    def _named(self, name: str) -> Target:
        return self._targets.get(name) or Target(name)

    def _of_default(self, text: str) -> Target:
        """The target of `default_model`, whose name may be an alias."""
        own = Target.of("default_model", text)
        return Target(self._named(own.model).model, own.size or self._named(own.model).size)


def _front(request: Request) -> Front:
    return request.app.state.front


FrontOf = Annotated[Front, Depends(_front)]
