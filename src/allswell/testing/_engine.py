"""What the versions of HTTP have in common at an origin: an engine without I/O, and what it hears."""

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
    """The client gave up an exchange."""

    stream: int
    word: str
    code: int


@dataclass(frozen=True, slots=True)
class Leaving:
    """The client's GOAWAY."""

    last: int
    code: int


@dataclass(frozen=True, slots=True)
class Broken:
    """The client broke the protocol."""

    why: str


Heard: TypeAlias = Head | Body | Complete | GivenUp | Leaving | Broken


class Streams(Protocol):
    """The words of a version that multiplexes, about its streams."""

    def refuse(self, stream: int) -> None:
        """Say that a request was not executed."""

    def reset(self, stream: int) -> None:
        """Reset a stream."""

    def goaway(self, last: int) -> None:
        """Say GOAWAY: requests on streams after this one are not executed."""


class Engine(Protocol):
    """One version of HTTP, at an origin. What it says waits in it until the connection takes it.

    :ivar version: ``"HTTP/1.1"``, ``"HTTP/2"`` or ``"HTTP/3"``.
    :ivar last: whether no request can follow on this connection (HTTP/1.1: one of the two has said so).
    """

    version: str
    last: bool

    @property
    def streams(self) -> Streams | None:
        """What refuses, resets and leaves; ``None`` in HTTP/1.1, which does not multiplex."""

    @property
    def unfinished(self) -> str:
        """What the client has begun to say, and not ended: ``"a frame"``; else ``""``. No request that was heard."""

    def head(self, stream: int, method: str, response: Response, *, last: bool) -> None:
        """Say a response's head. :param last: the connection's last, so say that it closes (HTTP/1.1)."""

    def room(self, stream: int) -> int:
        """The bytes of a body that may be said now."""

    def body(self, stream: int, data: bytes) -> None:
        """Say a piece of a body."""

    def finish(self, stream: int) -> None:
        """Say that a response is complete, where its head or its length has not said so."""

    def done(self, stream: int) -> Iterable[Heard]:
        """The exchange is over. What was waiting behind it is heard now."""


class ByteEngine(Engine, Protocol):
    """An engine on top of a stream of bytes."""

    def receive(self, data: bytes) -> Iterable[Heard]:
        """Take bytes."""

    def take(self) -> bytes:
        """All that it has said since."""
