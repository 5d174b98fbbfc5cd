"""The bodies that this process holds, bounded together."""

from __future__ import annotations

from starlette.exceptions import HTTPException

MAX_HELD_BYTES = 256 << 20


class Room:
    """The memory for the bodies of all requests.

    Args:
        most: bytes.
    """

    def __init__(self, most: int = MAX_HELD_BYTES) -> None:
        self.most = most
        self.taken = 0


class Share:
    """What one request holds of it: its body, what it has fetched, and copies of them.

    Attributes:
        held: bytes.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self.held = 0

    def take(self, count: int) -> None:
        """Holds so many bytes more, until `leave`.

        Raises:
            HTTPException: there is no room for them now.
        """
        if self._room.taken + count > self._room.most:
            others = self._room.taken - self.held
            sentence = f"the bodies of other requests take {others} bytes: try again in 1 s"
            raise HTTPException(503, sentence, {"Retry-After": "1"})
        self._room.taken += count
        self.held += count

    def another(self) -> Share:
        """A share of the same room, for what outlives the request."""
        return Share(self._room)

    def leave(self) -> None:
        """The request has ended, and holds nothing."""
        self._room.taken -= self.held
        self.held = 0
