"""The events that a scripted origin records: what its clients did, and what it did itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    :ivar connection: the number of its connection; the first is 1. In a mock it is 0.
    :ivar at: when, in seconds since the record began.
    """

    connection: int
    at: float

    #: Which side sent something: ``"←"`` the client, ``"→"`` the origin, ``"·"`` neither.
    direction: ClassVar[str] = "←"

    def __str__(self) -> str:
        return type(self).__name__


@dataclass(frozen=True, slots=True)
class Connected(Event):
    """A client connected.

    :ivar over: ``"TCP"`` or ``"QUIC"``.
    """

    over: str

    def __str__(self) -> str:
        return f"{self.over} connection"


@dataclass(frozen=True, slots=True)
class Secured(Event):
    """The TLS handshake succeeded.

    :ivar version: ``"TLSv1.2"`` or ``"TLSv1.3"``.
    :ivar alpn: the protocol that ALPN agreed on, or ``""``.
    """

    version: str
    alpn: str

    def __str__(self) -> str:
        return f"{self.version}, ALPN {self.alpn or 'none'}"


@dataclass(frozen=True, slots=True)
class Speaks(Event):
    """The client began to speak HTTP.

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
    """A whole request was given to its handler, so its effects have happened.

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
    """A request was not executed, and the client was told so (HTTP/1.1: the connection ended without a response).

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

    :ivar stream: the stream's number; in HTTP/1.1, the request's number on its connection.
    :ivar status: its status code.
    """

    stream: int
    status: int
    direction = "→"

    def __str__(self) -> str:
        return f"{self.status} [{self.stream}]"


@dataclass(frozen=True, slots=True)
class StreamReset(Event):
    """The client reset one exchange.

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
    """The client sent GOAWAY.

    :ivar last: in HTTP/2 the last stream that it processed, in HTTP/3 the first push that it did not accept.
    :ivar code: HTTP/2's error code. HTTP/3 has none, so it is 0 there.
    """

    last: int
    code: int

    def __str__(self) -> str:
        return f"GOAWAY {self.code:#x}"


@dataclass(frozen=True, slots=True)
class CloseNotify(Event):
    """The client sent close_notify, the goodbye of TLS."""

    def __str__(self) -> str:
        return "close_notify"


@dataclass(frozen=True, slots=True)
class Alert(Event):
    """TLS failed.

    :ivar reason: OpenSSL's text.
    """

    reason: str

    def __str__(self) -> str:
        return f"TLS failed: {self.reason}"


@dataclass(frozen=True, slots=True)
class Fin(Event):
    """The client sent FIN, the goodbye of TCP."""

    def __str__(self) -> str:
        return "FIN"


@dataclass(frozen=True, slots=True)
class Rst(Event):
    """The client sent RST. It may follow a FIN: the client closed its socket without waiting for the origin's FIN."""

    def __str__(self) -> str:
        return "RST"


@dataclass(frozen=True, slots=True)
class ConnectionClose(Event):
    """The client sent CONNECTION_CLOSE (RFC 9000 §19.19).

    :ivar code: the error code.
    :ivar application: whether the frame has type 0x1d, with a code of HTTP/3; otherwise it is 0x1c, with one of QUIC.
    :ivar reason: the client's text.
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
    """The client broke its protocol.

    :ivar why: how.
    """

    why: str

    def __str__(self) -> str:
        return f"protocol violated: {self.why}"


@dataclass(frozen=True, slots=True)
class Said(Event):
    """The origin sent something that ends a connection or a stream.

    :ivar word: ``"GOAWAY"``, ``"RST_STREAM"``, ``"RESET_STREAM"``, ``"close_notify"``, ``"FIN"``, ``"RST"`` or
        ``"CONNECTION_CLOSE"``; ``""`` if it forgot the connection and sent nothing.
    :ivar cut: whether the origin cut the connection by it, so the client could not end it gracefully.
    """

    word: str
    cut: bool = False
    direction = "→"

    def __str__(self) -> str:
        return self.word or "forgotten without a word"


@dataclass(frozen=True, slots=True)
class Ended(Event):
    """The connection has ended. No event of it follows."""

    direction = "·"

    def __str__(self) -> str:
        return "over"
