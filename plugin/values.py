"""What a field of a request may hold: each kind of value, how it is read, and its range in words. Light to import."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from plugin.limits import Limits

MAX_NAME_BYTES = 64
_MAX_SCHEDULE_BYTES = 8192  # a schedule can name many steps
_MAGIC = (b"\x89PNG", b"\xff\xd8")  # begin a PNG and a JPEG
_LONGEST_DATA_URL = 128  # bytes before the base64 begins
_DATA_URL = re.compile(rb"^\s*data:[^,]*;base64,", re.IGNORECASE)

Bound = int | Callable[["Limits"], int]  # the same for every model, or one of the model's limits


class ResponseFormat(Enum):
    """How the picture travels: as pixels, or as a base64 file."""

    RAW = "raw"
    B64_JSON = "b64_json"


class Values(Protocol):
    """What a field may hold."""

    def allowed(self, limits: Limits) -> str:
        """The range in words that follow "must be"."""

    def read(self, value: Any, limits: Limits) -> Any:
        """The value of a request, from what its tensor holds: bytes for text, int, float or bool.

        Raises:
            ValueError: it is not allowed. The message continues the field's name: "is 9, must be from 0 to 8".
        """


@dataclass(frozen=True)
class Text:
    """UTF-8 text of a bounded length."""

    max_bytes: Bound

    def allowed(self, limits: Limits) -> str:
        return f"at most {_of(self.max_bytes, limits)} bytes of UTF-8"

    def read(self, value: bytes, limits: Limits) -> str:
        if len(value) > _of(self.max_bytes, limits):
            raise ValueError(f"is {len(value)} bytes long, must be {self.allowed(limits)}")
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"is invalid at byte {error.start}, must be UTF-8 text") from None
        if "\0" in text:
            raise ValueError("has a NUL character, must be UTF-8 text without one")
        return text


@dataclass(frozen=True)
class Choice:
    """One member of an enum, by its value."""

    of: type[Enum]

    def allowed(self, limits: Limits) -> str:
        return f"one of: {', '.join(each.value for each in self.of)}"

    def read(self, value: bytes, limits: Limits) -> Enum:
        text = Text(MAX_NAME_BYTES).read(value, limits)
        try:
            return self.of(text)
        except ValueError:
            raise ValueError(f"is {text!r}, must be {self.allowed(limits)}") from None


@dataclass(frozen=True)
class Integer:
    """An integer in a range, both ends included."""

    low: Bound
    high: Bound

    def allowed(self, limits: Limits) -> str:
        return f"from {_of(self.low, limits)} to {_of(self.high, limits)}"

    def read(self, value: int, limits: Limits) -> int:
        if not _of(self.low, limits) <= value <= _of(self.high, limits):
            raise ValueError(f"is {value}, must be {self.allowed(limits)}")
        return int(value)


@dataclass(frozen=True)
class Number:
    """A finite number in a range, both ends included."""

    low: float
    high: float

    def allowed(self, limits: Limits) -> str:
        return f"a finite number from {self.low} to {self.high}"

    def read(self, value: float, limits: Limits) -> float:
        if not (math.isfinite(value) and self.low <= value <= self.high):
            raise ValueError(f"is {float(value)}, must be {self.allowed(limits)}")
        return float(value)


class Side:
    """Height or width in pixels, as the model can make them."""

    def allowed(self, limits: Limits) -> str:
        return f"a multiple of {limits.size_multiple} from {limits.min_size} to {limits.max_size}"

    def read(self, value: int, limits: Limits) -> int:
        if not limits.min_size <= value <= limits.max_size or value % limits.size_multiple:
            raise ValueError(f"is {value}, must be {self.allowed(limits)}")
        return int(value)


class Frames:
    """A number of frames, as the model's autoencoder can make them."""

    def allowed(self, limits: Limits) -> str:
        if limits.max_frames == 1:
            return "1: this model makes pictures"
        return f"1 + a multiple of {limits.frames_multiple} from 1 to {limits.max_frames}"

    def read(self, value: int, limits: Limits) -> int:
        if not 1 <= value <= limits.max_frames or (value - 1) % limits.frames_multiple:
            raise ValueError(f"is {value}, must be {self.allowed(limits)}")
        return int(value)


@dataclass(frozen=True)
class PictureFiles:
    """Picture files, each as its bytes or as base64 text; one, or up to what the model allows."""

    most: Bound = 1

    def allowed(self, limits: Limits) -> str:
        most, largest = _of(self.most, limits), limits.max_picture_bytes
        files = "a PNG, JPEG or WebP file" if most == 1 else f"1 to {most} PNG, JPEG or WebP files"
        return f"{files} of at most {largest} bytes, as such or in base64"

    def read(self, value: Sequence[bytes], limits: Limits) -> tuple[bytes, ...]:
        most = _of(self.most, limits)
        if not 1 <= len(value) <= most:
            raise ValueError(f"has {len(value)} files, must have {'1' if most == 1 else f'from 1 to {most}'}")
        return tuple(_file(each, limits.max_picture_bytes) for each in value)


class Flag:
    """True or false."""

    def allowed(self, limits: Limits) -> str:
        return "true or false"

    def read(self, value: bool, limits: Limits) -> bool:
        return bool(value)


@dataclass(frozen=True)
class CacheSetting:
    """A setting of `taylorseer.CacheConfig`, which checks the value itself."""

    range: str

    def allowed(self, limits: Limits) -> str:
        return self.range

    def read(self, value: Any, limits: Limits) -> Any:
        return Text(_MAX_SCHEDULE_BYTES).read(value, limits) if isinstance(value, bytes) else value


def _of(bound: Bound, limits: Limits) -> int:
    return bound(limits) if callable(bound) else bound


def _file(data: bytes, most_bytes: int) -> bytes:
    """The file in a value: the value itself, or what it holds in base64, alone or in a data URL."""
    if not data.startswith(_MAGIC) and not (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        text = _DATA_URL.sub(b"", data[:_LONGEST_DATA_URL]) + data[_LONGEST_DATA_URL:]
        try:
            data = base64.b64decode(b"".join(text.split()), validate=True)
        except binascii.Error:
            raise ValueError("is neither a PNG, JPEG or WebP file nor one in base64") from None
    if not 0 < len(data) <= most_bytes:
        raise ValueError(f"has {len(data)} bytes, must have from 1 to {most_bytes}")
    return data
