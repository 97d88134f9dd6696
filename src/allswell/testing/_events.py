"""What a scripted origin saw, and what it said: one typed event each, in order, with its time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    :ivar connection: the connection's number; the first is 1.
    :ivar at: seconds since the origin began.
    """

    connection: int
    at: float

    #: Which side spoke: ``"←"`` the client, ``"→"`` the origin, ``"·"`` neither.
    direction: ClassVar[str] = "←"

    def __str__(self) -> str:
        return type(self).__name__


@dataclass(frozen=True, slots=True)
class Connected(Event):
    """A connection came.

    :ivar over: ``"TCP"`` or ``"QUIC"``.
    """

    over: str

    def __str__(self) -> str:
        return f"{self.over} connection"


@dataclass(frozen=True, slots=True)
class Secured(Event):
    """TLS was agreed on.

    :ivar version: ``"TLSv1.2"`` or ``"TLSv1.3"``.
    :ivar alpn: the protocol that ALPN agreed on, or ``""``.
    """

    version: str
    alpn: str

    def __str__(self) -> str:
        return f"{self.version}, ALPN {self.alpn or 'none'}"


@dataclass(frozen=True, slots=True)
class Speaks(Event):
    """The first words of HTTP came.

    :ivar version: ``"HTTP/1.1"``, ``"HTTP/2"`` or ``"HTTP/3"``.
    """

    version: str

    def __str__(self) -> str:
        return f"speaks {self.version}"


@dataclass(frozen=True, slots=True)
class RequestReceived(Event):
    """The head of a request came.

    :ivar stream: the stream's number; in HTTP/1.1, the request's number on its connection.
    :ivar method: its method.
    :ivar target: its path, with its query.
    """

    stream: int
    method: str
    target: str

    def __str__(self) -> str:
        return f"{self.method} {self.target} [{self.stream}]"


@dataclass(frozen=True, slots=True)
class RequestExecuted(Event):
    """A whole request was given to its handler: what it asks for has been done.

    :ivar stream: the stream's number; in HTTP/1.1, the request's number on its connection.
    :ivar method: its method.
    :ivar target: its path, with its query.
    """

    stream: int
    method: str
    target: str
    direction = "·"

    def __str__(self) -> str:
        return f"executed {self.method} {self.target} [{self.stream}]"


@dataclass(frozen=True, slots=True)
class RequestRefused(Event):
    """A request was not executed, and the client was told so (HTTP/1.1: the connection ended in place of an answer).

    :ivar stream: the stream's number; in HTTP/1.1, the request's number on its connection.
    :ivar method: its method.
    :ivar target: its path, with its query.
    """

    stream: int
    method: str
    target: str
    direction = "→"

    def __str__(self) -> str:
        return f"refused {self.method} {self.target} [{self.stream}]"


@dataclass(frozen=True, slots=True)
class ResponseSent(Event):
    """The last byte of a response was sent (HTTP/3: given to QUIC).

    :ivar stream: the request's.
    :ivar status: its status code.
    """

    stream: int
    status: int
    direction = "→"

    def __str__(self) -> str:
        return f"{self.status} [{self.stream}]"


@dataclass(frozen=True, slots=True)
class StreamReset(Event):
    """The client gave up one exchange.

    :ivar stream: the stream's number.
    :ivar word: ``"RST_STREAM"``, ``"RESET_STREAM"`` or ``"STOP_SENDING"``.
    :ivar code: the error code.
    """

    stream: int
    word: str
    code: int

    def __str__(self) -> str:
        return f"{self.word} {self.code:#x} [{self.stream}]"


@dataclass(frozen=True, slots=True)
class ExchangeCut(Event):
    """The client ended the connection while an exchange was under way.

    :ivar stream: the stream's number; in HTTP/1.1, the request's number on its connection.
    :ivar method: its method.
    :ivar target: its path, with its query.
    """

    stream: int
    method: str
    target: str
    direction = "·"

    def __str__(self) -> str:
        return f"cut: {self.method} {self.target} [{self.stream}]"


@dataclass(frozen=True, slots=True)
class GoAway(Event):
    """The client's GOAWAY.

    :ivar last: the last stream (HTTP/2), or push (HTTP/3), that it processed.
    :ivar code: HTTP/2's error code; HTTP/3 has none, and this is 0.
    """

    last: int
    code: int

    def __str__(self) -> str:
        return f"GOAWAY {self.code:#x}"


@dataclass(frozen=True, slots=True)
class CloseNotify(Event):
    """TLS's goodbye."""

    def __str__(self) -> str:
        return "close_notify"


@dataclass(frozen=True, slots=True)
class Alert(Event):
    """TLS failed.

    :ivar reason: in OpenSSL's words.
    """

    reason: str

    def __str__(self) -> str:
        return f"TLS failed: {self.reason}"


@dataclass(frozen=True, slots=True)
class Fin(Event):
    """TCP's goodbye."""

    def __str__(self) -> str:
        return "FIN"


@dataclass(frozen=True, slots=True)
class Rst(Event):
    """TCP's reset. It may follow a FIN: the client closed its socket without waiting, and its kernel answers so."""

    def __str__(self) -> str:
        return "RST"


@dataclass(frozen=True, slots=True)
class ConnectionClose(Event):
    """QUIC's CONNECTION_CLOSE.

    :ivar code: the error code.
    :ivar application: whether it is the application's (0x1d), with a code of HTTP/3; else it is QUIC's (0x1c).
    :ivar reason: in the client's words.
    """

    code: int
    application: bool
    reason: str

    def __str__(self) -> str:
        kind = "0x1d" if self.application else "0x1c"
        return f"CONNECTION_CLOSE {kind} {self.code:#x}" + (f" ({self.reason})" if self.reason else "")


@dataclass(frozen=True, slots=True)
class Vanished(Event):
    """A QUIC connection was silent until its idle timeout: no CONNECTION_CLOSE came."""

    def __str__(self) -> str:
        return "silent until the idle timeout"


@dataclass(frozen=True, slots=True)
class Violation(Event):
    """What the client said breaks its protocol.

    :ivar why: in words.
    """

    why: str

    def __str__(self) -> str:
        return f"protocol violated: {self.why}"


@dataclass(frozen=True, slots=True)
class Said(Event):
    """Something that the origin said.

    :ivar word: ``"GOAWAY"``, ``"RST_STREAM"``, ``"RESET_STREAM"``, ``"close_notify"``, ``"FIN"``, ``"RST"`` or
        ``"CONNECTION_CLOSE"``; ``""`` where the connection was forgotten without a word.
    :ivar cut: whether the origin cut the connection by it, so that the client had no chance to end it well.
    """

    word: str
    cut: bool = False
    direction = "→"

    def __str__(self) -> str:
        return self.word or "forgotten without a word"


@dataclass(frozen=True, slots=True)
class Ended(Event):
    """The connection is over: nothing more can be seen of it."""

    direction = "·"

    def __str__(self) -> str:
        return "over"
