"""The calls of a backend to its QUIC connection, and the events of that. It names no QUIC library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from allswell._errors import AllswellError, ConnectFailed, Party, RemoteProtocolError, TransportError


@dataclass(frozen=True, slots=True)
class End:
    """Why a connection is over.

    :ivar by: ``"us"``, ``"peer"``, or ``"network"`` (the idle timeout has passed).
    :ivar code: the code of the CONNECTION_CLOSE; ``None`` if there was none (a stateless reset, the idle timeout).
    :ivar application: whether the code is the application's (frame type 0x1d) or QUIC's (0x1c).
    """

    by: Party
    code: int | None
    application: bool
    reason: str

    def __str__(self) -> str:
        return self.reason if self.code is None else f"CONNECTION_CLOSE(0x{self.code:x})"


# Events. There is one for each piece of a stream, so they must be cheap. A frozen dataclass takes longer to make.


@dataclass(slots=True)
class StreamDataReceived:
    """Bytes of a stream, in order.

    :ivar end_stream: whether they are the last.
    """

    stream_id: int
    data: bytes
    end_stream: bool


@dataclass(slots=True)
class StreamReset:
    """The peer gave up its half of a stream (RESET_STREAM)."""

    stream_id: int
    error_code: int


@dataclass(slots=True)
class StopSendingReceived:
    """The peer wants no more of our half of a stream. QUIC has already reset that half (RFC 9000 §3.5)."""

    stream_id: int
    error_code: int


@dataclass(slots=True)
class DatagramFrameReceived:
    """A DATAGRAM frame (RFC 9221)."""

    data: bytes


@dataclass(slots=True)
class HandshakeCompleted:
    """The handshake is complete: an attacker cannot replay what is sent from now on."""


@dataclass(slots=True)
class ConnectionTerminated:
    """The connection is over. This event comes once, as the last one."""

    end: End


@dataclass(slots=True)
class Progress:
    """Datagrams without data have come: acknowledgements, credit. More may be sent than before."""


QuicEvent = (
    StreamDataReceived
    | StreamReset
    | StopSendingReceived
    | DatagramFrameReceived
    | HandshakeCompleted
    | ConnectionTerminated
    | Progress
)


class Multiplexer(Protocol):
    """A QUIC connection, as far as a backend uses it. All calls are synchronous, and only queue.

    :ivar stream_window: how many bytes of one stream the peer may send ahead of :meth:`credit_stream`.
    :ivar datagrams: whether DATAGRAM frames are accepted.
    :ivar largest_datagram: the largest payload of a DATAGRAM frame that can be sent, in bytes; 0: none can.
    :ivar silent: whether the peer has left several probes in a row unanswered.
    :ivar unsent_datagrams: about how many bytes of DATAGRAM frames were not sent yet.
    """

    stream_window: int
    datagrams: bool
    silent: bool

    @property
    def handshake_complete(self) -> bool: ...
    @property
    def largest_datagram(self) -> int: ...
    @property
    def unsent_datagrams(self) -> int: ...
    @property
    def max_streams(self) -> int: ...
    @property
    def streams_left(self) -> int: ...
    def get_next_available_stream_id(self, is_unidirectional: bool = False) -> int: ...
    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        """Send, unless the peer has asked to stop. (The event of its STOP_SENDING may not have been taken yet.)"""

    def send_datagram_frame(self, data: bytes) -> None: ...
    def reset_stream(self, stream_id: int, error_code: int) -> None: ...
    def stop_stream(self, stream_id: int, error_code: int) -> None: ...
    def send_ping(self, uid: int) -> None: ...
    def unsent(self, stream_id: int) -> int: ...
    def credit(self, size: int) -> bool:
        """Some bytes of any stream were consumed: the peer may send as many more. Return whether it is told now."""

    def credit_stream(self, stream_id: int, size: int) -> None: ...
    def close(self, error_code: int = 0, frame_type: int | None = None, reason_phrase: str = "") -> None: ...


def why_ended(end: End, peer_error: str, name: Callable[[int], str] = hex) -> AllswellError:
    """A connection's end as an error.

    :param peer_error: the message if the peer said CONNECTION_CLOSE. Its code and reason are added.
    :param name: names a code of the application.
    """
    if end.by == "network":
        return TransportError(f"the QUIC connection was lost: {end.reason}", operation="read")
    if end.by == "us":
        if end.code is not None and end.code & ~0xFF == 0x100 and not end.application:
            return ConnectFailed(f"the TLS handshake failed: {end.reason}", phase="tls", by="peer")
        return RemoteProtocolError(f"the peer broke QUIC: {end.reason or hex(end.code or 0)}")
    if end.code is None:
        return TransportError("the peer has lost the QUIC connection (stateless reset)", operation="read", by="peer")
    code = name(end.code) if end.application else f"QUIC's error 0x{end.code:x}"
    reason = f": {end.reason}" if end.reason else ""
    return TransportError(f"{peer_error} ({code}{reason})", operation="read", by="peer")
