"""What the versions of HTTP have in common at an origin: an engine without I/O, and the events that it returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from allswell.testing._script import Response


@dataclass(frozen=True, slots=True)
class Head:
    """A request's head."""

    stream: int
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Body:
    """A piece of a request's body."""

    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Complete:
    """A request is complete."""

    stream: int


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The client reset an exchange. See :class:`StreamReset`."""

    stream: int
    word: str
    code: int


@dataclass(frozen=True, slots=True)
class Leaving:
    """The client sent GOAWAY. See :class:`GoAway`."""

    last: int
    code: int


@dataclass(frozen=True, slots=True)
class Broken:
    """The client broke the protocol. ``why`` says how."""

    why: str


Heard: TypeAlias = Head | Body | Complete | GivenUp | Leaving | Broken


class Streams(Protocol):
    """What HTTP/2 and HTTP/3 can tell the client about streams."""

    def refuse(self, stream: int) -> None:
        """Tell the client that a request was not executed."""

    def reset(self, stream: int) -> None:
        """Reset a stream."""

    def goaway(self, last: int) -> None:
        """Send GOAWAY: requests on streams after this one are not executed."""


class Engine(Protocol):
    """One version of HTTP, at an origin. Its output waits in it until the connection takes it.

    :ivar version: ``"HTTP/1.1"``, ``"HTTP/2"`` or ``"HTTP/3"``.
    :ivar last: whether no request can follow on this connection. Only HTTP/1.1 sets it: one side has sent
        ``Connection: close``.
    """

    version: str
    last: bool

    @property
    def streams(self) -> Streams | None:
        """The methods for streams; ``None`` in HTTP/1.1, which has no streams."""

    @property
    def unfinished(self) -> str:
        """What the client has sent only in part: ``"a frame"``, say. Otherwise ``""``, also if a body is to come."""

    def head(self, stream: int, method: str, response: Response, *, last: bool) -> None:
        """Write the head of a response.

        :param last: whether it is the last on the connection. HTTP/1.1 adds ``Connection: close`` then.
        """

    def room(self, stream: int) -> int:
        """How many bytes of a body may be written now."""

    def body(self, stream: int, data: bytes) -> None:
        """Write a piece of a body."""

    def finish(self, stream: int) -> None:
        """Mark the end of a response, if its head has not done so."""

    def done(self, stream: int) -> Iterable[Heard]:
        """The exchange is over. Return the events of the input that waited for that."""


class ByteEngine(Engine, Protocol):
    """An engine on top of a stream of bytes."""

    def receive(self, data: bytes) -> Iterable[Heard]:
        """Take bytes. Return their events."""

    def take(self) -> bytes:
        """Return the output since the last call."""
