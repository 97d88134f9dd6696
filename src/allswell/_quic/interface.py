"""What a backend asks of the QUIC connection it sits on (``_quic/connection.py`` is one)."""

from __future__ import annotations

from typing import Protocol

from allswell._errors import AllswellError, ConnectFailed, Party, RemoteProtocolError, TransportError


class End(Protocol):
    """Why the connection is over.

    :ivar by: who ended it: ``"us"``, ``"peer"``, or ``"network"`` (the idle timeout).
    :ivar code: of the CONNECTION_CLOSE, if there was one.
    :ivar application: whether the code is the application's.
    """

    @property
    def by(self) -> Party: ...
    @property
    def code(self) -> int | None: ...
    @property
    def application(self) -> bool: ...
    @property
    def reason(self) -> str: ...


class Multiplexer(Protocol):
    """A QUIC connection, as far as a backend uses it. Everything is synchronous and only queues.

    :ivar stream_window: bytes of one stream that the peer may send ahead of :meth:`credit_stream`.
    :ivar datagrams: whether DATAGRAM frames are accepted.
    :ivar largest_datagram: bytes of the largest DATAGRAM frame's payload that can be sent; 0: none can.
    :ivar silent: whether the peer has left several probes in a row unanswered.
    :ivar unsent_datagrams: about how many bytes of DATAGRAM frames were not sent yet.
    """

    stream_window: int
    datagrams: bool
    silent: bool

    @property
    def ended(self) -> End | None: ...
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
        """Send, unless the peer has asked to stop: its STOP_SENDING may be an event that was not told yet."""

    def send_datagram_frame(self, data: bytes) -> None: ...
    def reset_stream(self, stream_id: int, error_code: int) -> None: ...
    def stop_stream(self, stream_id: int, error_code: int) -> None: ...
    def send_ping(self, uid: int) -> None: ...
    def unsent(self, stream_id: int) -> int: ...
    def credit(self, size: int) -> None: ...
    def credit_stream(self, stream_id: int, size: int) -> None: ...
    def close(self, error_code: int = 0, frame_type: int | None = None, reason_phrase: str = "") -> None: ...


def why_ended(end: End, peer_error: str) -> AllswellError:
    """A connection's end as an error.

    :param peer_error: what to say when it is the peer that said CONNECTION_CLOSE, before its code and reason.
    """
    if end.by == "network":
        return TransportError(f"the QUIC connection was lost: {end.reason}", operation="read")
    if end.by == "us":
        if end.code is not None and end.code & ~0xFF == 0x100 and not end.application:
            return ConnectFailed(f"the TLS handshake failed: {end.reason}", phase="tls", by="peer")
        return RemoteProtocolError(f"the peer broke QUIC: {end.reason or hex(end.code or 0)}")
    if end.code is None:
        return TransportError("the peer has lost the QUIC connection (stateless reset)", operation="read", by="peer")
    reason = f": {end.reason}" if end.reason else ""
    return TransportError(f"{peer_error} (0x{end.code:x}{reason})", operation="read", by="peer")
