"""What the environment says of the servers: which they are by default, and what must stay out of workflows."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from triton_taylorseer_client import AsyncClient
from triton_taylorseer_client.endpoint import Endpoint, credentials

_URL = "TRITON_TAYLORSEER_URL"
_MODEL = "TRITON_TAYLORSEER_MODEL"
_HEADERS = "TRITON_TAYLORSEER_HEADERS"
_CA = "TRITON_TAYLORSEER_CA"


@dataclass(frozen=True)
class Settings:
    """What the environment says.

    Attributes:
        urls: the servers by default, and the only ones that get the headers.
        model: the default model; None for the first one that is ready.
        headers: sent with each call, for example a token for a proxy.
        root_certificates: file with the authorities that servers with TLS are checked with, None for gRPC's own.
    """

    urls: tuple[str, ...] = ("localhost:8001",)
    model: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    root_certificates: str | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Settings:
        """Reads the environment.

        Raises:
            ValueError: a variable is wrong; the message names it, and no secret.
            OSError: the file of certificates cannot be read.
        """
        certificates = environment.get(_CA) or None
        credentials(False, certificates)  # refuses a wrong file here
        try:
            urls = urls_of(environment.get(_URL) or cls.urls[0])
        except ValueError as error:
            raise ValueError(f"{_URL}: {error}") from None
        headers = _headers_of(environment.get(_HEADERS) or "{}")
        return cls(urls, environment.get(_MODEL) or None, headers, certificates)

    def client(self, url: str, model: str) -> AsyncClient:
        """A client of a model; a server that the environment does not name gets no headers."""
        return AsyncClient(
            url,
            model,
            headers=self.headers if url in self.urls else None,
            root_certificates=self.root_certificates if Endpoint.of(url).tls else None,
        )


def urls_of(text: str) -> tuple[str, ...]:
    """The servers in a text, one on each line, or with blanks or commas between them; each once.

    Raises:
        ValueError: there is none, or one is no HOST:PORT.
    """
    urls = tuple(dict.fromkeys(re.findall(r"[^\s,]+", text)))
    if not urls:
        raise ValueError("url is empty, must have a HOST:PORT of a server's gRPC, for example localhost:8001")
    for url in urls:
        Endpoint.of(url)
    return urls


def _headers_of(text: str) -> dict[str, str]:
    try:
        headers = json.loads(text)
    except ValueError:
        headers = None
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        # Without its text, since that is a secret.
        raise ValueError(f'{_HEADERS} must be a JSON object of texts, as {{"authorization": "Bearer ..."}}')
    return {name.lower(): value for name, value in headers.items()}  # gRPC takes no capitals
