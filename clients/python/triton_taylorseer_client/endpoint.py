"""Where a server is: what people write as its URL, and what gRPC takes."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

import grpc

# Names that gRPC resolves itself, as in dns:///triton:8001 or unix:/run/triton.sock: they stay as they are.
_GRPCS_OWN = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds|passthrough|google-c2p):", re.IGNORECASE)
_SCHEMES = {"http": False, "https": True, "grpc": False, "grpcs": True}  # whether it stands for TLS
_PARTS = re.compile(r"(?P<host>\[[^\[\]]+\]|[^\[\]:/@]+)(:(?P<port>\d+))?")
_TLS_PORT = 443  # where no port is named
# What gRPC says of a connection that somebody answers: what is wrong with it.
_REASONS = {
    "Failed parsing HTTP/2": "what listens at {url} does not speak gRPC: name the server's gRPC port, by default 8001",
    "WRONG_VERSION_NUMBER": "what listens at {url} does not speak TLS: connect without it",
    "CERTIFICATE_VERIFY_FAILED": "the certificate of {url} is not trusted: name the file of its authority "
    "(root_certificates, --ca)",
    "Hostname Verification": "the certificate of {url} is for another host name: use a name that it has",
    "Socket closed": "what listens at {url} closes the connection: it may need TLS (ssl, --tls)",
}


@dataclass(frozen=True)
class Endpoint:
    """Where a server's gRPC is.

    Attributes:
        target: as gRPC takes it: host:port, or a name of gRPC's own as dns:///host:port.
        tls: whether the connection is encrypted.
    """

    target: str
    tls: bool = False

    @classmethod
    def of(cls, url: str, tls: bool = False) -> Endpoint:
        """Reads a URL.

        Args:
            url: host:port, perhaps with http://, https://, grpc:// or grpcs:// before it; or a name of gRPC's own.
            tls: encrypt the connection, whatever the scheme; https:// and grpcs:// do so too.

        Raises:
            ValueError: it is something else. The message says what it must be.
        """
        if not isinstance(url, str):
            raise _wrong(url)
        text = url.strip()
        if _GRPCS_OWN.match(text):
            return cls(text, tls)
        scheme, separator, rest = text.rpartition("://")
        if separator and scheme.lower() not in _SCHEMES:
            raise _wrong(url, f": {scheme!r} is none of the schemes {', '.join(_SCHEMES)}")
        tls = tls or _SCHEMES.get(scheme.lower(), False)
        return cls(_host_and_port(url, rest, tls), tls)

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine: a loopback address, `localhost`, or a Unix socket."""
        if re.match(r"(unix|unix-abstract|vsock):", self.target):
            return True
        hosts = re.sub(r"^(dns|ipv4|ipv6):(//[^/]*/)?", "", self.target, flags=re.IGNORECASE).split(",")
        return all(map(_is_loopback, hosts))

    @property
    def has_many(self) -> bool:
        """Whether the name may stand for several servers."""
        return re.match(r"(dns|ipv4|ipv6):", self.target, re.IGNORECASE) is not None


def credentials(ssl: bool, root_certificates: Path | str | None) -> grpc.ChannelCredentials | None:
    """What an encrypted connection is checked with; None without encryption.

    Args:
        ssl: encrypt the connection. A file of certificates means so too.
        root_certificates: file, in PEM, of the authorities that are trusted in place of gRPC's own.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has no certificate.
    """
    if root_certificates is None:
        return grpc.ssl_channel_credentials() if ssl else None
    pem = Path(root_certificates).read_bytes()
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise ValueError(f"root_certificates is {root_certificates}, must be a file with certificates in PEM")
    return grpc.ssl_channel_credentials(pem)


def why_unreachable(message: str, url: str) -> str | None:
    """A sentence for what gRPC says of a connection that cannot be made; None if the message is about something else.

    Args:
        message: gRPC's.
        url: of the server, for the sentence.
    """
    if not any(sign in message.lower() for sign in ("failed to connect", "resolution failed", "errors resolving")):
        return None
    for sign, sentence in _REASONS.items():
        if sign in message:
            return sentence.format(url=url)
    return f"no server answers at {url}: start one with `triton-taylorseer serve`"


def _host_and_port(url: str, text: str, tls: bool) -> str:
    text = text.removesuffix("/")
    parts = _PARTS.fullmatch(text)
    if parts is None:
        if text.count(":") > 1 and "[" not in text:
            raise _wrong(url, ": an IPv6 address stands in brackets, as in [::1]:8001")
        raise _wrong(url)
    port = parts["port"] or (str(_TLS_PORT) if tls else "")
    if not port or not 1 <= int(port[:6]) <= 65535:
        raise _wrong(url)
    return f"{parts['host']}:{port}"


def _is_loopback(address: str) -> bool:
    host = re.sub(r":\d+$", "", address).strip("[]")
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _wrong(url: object, why: str = "") -> ValueError:
    return ValueError(f"url is {url!r}, must be HOST:PORT of the server's gRPC, for example localhost:8001{why}")
