"""HTTP/3's unidirectional streams: the control streams of both sides, and the types of all that the peer opens.

The peer's control stream carries its SETTINGS, GOAWAY and ORIGIN frames. Ours carries our SETTINGS, GOAWAY and
PRIORITY_UPDATE frames.
"""

from __future__ import annotations

from collections.abc import Iterator

from allswell._backends import http3_frames as h3
from allswell._backends.http3_frames import ControlReader, H3Error, Malformed
from allswell._quic import varint
from allswell._quic.interface import Multiplexer

#: The largest frame that is accepted on a control stream, in bytes.
_CONTROL_LIMIT = 16 * 1024
#: RFC 9000 §2.1: what the two low bits of a stream's number say.
_KIND, _OURS_BOTH_WAYS, _THEIRS_ONE_WAY = 0b11, 0b00, 0b11
#: A reserved type (RFC 9114 §6.2.3). It stands for the type of any stream that we have no use for.
_UNKNOWN = bytes.fromhex("c000000000000021")


def is_request(stream_id: int) -> bool:
    """Whether a stream is one of those that carry requests."""
    return stream_id & _KIND == _OURS_BOTH_WAYS


class Control:
    """The control streams of one connection (RFC 9114 §6.2.1). It opens ours, and sends our settings there.

    :ivar stream: the number of our control stream.
    :ivar leaving: whether we have said GOAWAY.
    :ivar greeted: whether the peer's settings have come.
    :ivar settings: the peer's settings; empty until they come.
    :ivar section_limit: the size of the largest header section that the peer takes; ``None`` if it does not say.
    :ivar goaway: the first request that the peer refuses, as its last GOAWAY says; ``None`` until it says one.
    """

    __slots__ = ("_quic", "_reader", "goaway", "greeted", "leaving", "section_limit", "settings", "stream")

    def __init__(self, quic: Multiplexer, settings: dict[int, int]) -> None:
        self._quic = quic
        self._reader = ControlReader(_CONTROL_LIMIT)
        self.leaving = False
        self.greeted = False
        self.settings: dict[int, int] = {}
        self.section_limit: int | None = None
        self.goaway: int | None = None
        self.stream = quic.get_next_available_stream_id(is_unidirectional=True)
        quic.send_stream_data(self.stream, varint.encode(h3.CONTROL_STREAM) + h3.settings(settings))
        # We never send MAX_PUSH_ID, so there are no pushes (RFC 9114 §7.2.7).

    @property
    def takes_datagrams(self) -> bool:
        """Whether the peer's settings allow HTTP datagrams (RFC 9297 §2.1.1)."""
        return bool(self.settings.get(h3.H3_DATAGRAM))

    @property
    def takes_extended_connect(self) -> bool:
        """Whether the peer's settings allow extended CONNECT (RFC 9220 §3)."""
        return bool(self.settings.get(h3.ENABLE_CONNECT_PROTOCOL))

    def reprioritize(self, stream_id: int, priority: bytes) -> None:
        """Say that a response has another priority now (RFC 9218 §7.2)."""
        self._quic.send_stream_data(self.stream, h3.frame(h3.PRIORITY_UPDATE, varint.encode(stream_id) + priority))

    def say_goaway(self) -> None:
        """Send GOAWAY (RFC 9114 §5.2), once. A client's names the first push that it refuses: push 0."""
        if not self.leaving:
            self.leaving = True
            self._quic.send_stream_data(self.stream, h3.frame(h3.GOAWAY, varint.encode(0)))

    def receive(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The frames that these bytes of the peer's complete. Settings are noted here.

        :raises H3Error: if a frame is malformed, or may not come here, or not now.
        """
        try:
            frames = self._reader.feed(data)
        except Malformed as error:
            raise H3Error(error.code, str(error)) from error
        for kind, payload in frames:
            if not self.greeted:
                if kind != h3.SETTINGS:
                    raise H3Error(h3.H3_MISSING_SETTINGS, "the control stream does not begin with SETTINGS")
                self.settings = h3.parse_settings(payload)
                self.section_limit = self.settings.get(h3.MAX_FIELD_SECTION_SIZE)
                self.greeted = True
            elif kind == h3.SETTINGS:
                raise H3Error(h3.H3_FRAME_UNEXPECTED, "SETTINGS came twice")  # RFC 9114 §7.2.4
            elif kind == h3.CANCEL_PUSH:
                raise H3Error(h3.H3_ID_ERROR, "CANCEL_PUSH for a push that was never allowed")  # RFC 9114 §7.2.3
            yield kind, payload

    def on_goaway(self, payload: bytes) -> int:
        """The peer has said GOAWAY. Return the first request that it refuses (RFC 9114 §5.2).

        :raises H3Error: if it may not say that.
        """
        first_refused = h3.one_varint(payload, "GOAWAY")
        if not is_request(first_refused):
            raise H3Error(h3.H3_ID_ERROR, f"GOAWAY with the id {first_refused}, which is not that of a request")
        if self.goaway is not None and first_refused > self.goaway:
            raise H3Error(h3.H3_ID_ERROR, "GOAWAY with a larger id than the one before")
        self.goaway = first_refused
        return first_refused


class PeerStreams:
    """The peer's unidirectional streams, by their types (RFC 9114 §6.2)."""

    __slots__ = ("_critical", "_quic", "_untyped")

    def __init__(self, quic: Multiplexer) -> None:
        self._quic = quic
        self._critical: dict[int, int] = {}  # the types of its control and QPACK streams, by the streams' numbers
        self._untyped: dict[int, bytes] = {}  # the other streams: the bytes of their types that have come

    def take(self, stream_id: int, data: bytes, end: bool) -> tuple[int, bytes] | None:
        """The type of a stream, and what came behind it; ``None`` if it is not known yet, or the stream is of no use.

        :raises H3Error: if the peer must not open such a stream.
        """
        if stream_id & _KIND != _THEIRS_ONE_WAY:
            raise H3Error(h3.H3_STREAM_CREATION_ERROR, "a bidirectional stream from the server")  # RFC 9114 §6.1
        kind = self._critical.get(stream_id)
        if kind is not None:
            return kind, data
        before = self._untyped.pop(stream_id, b"")
        data = before + data
        try:
            kind, position = varint.decode(data, 0)
        except IndexError:
            if not end:
                self._untyped[stream_id] = data
            return None
        if kind == h3.PUSH_STREAM:
            raise H3Error(h3.H3_ID_ERROR, "a push that was never allowed")  # RFC 9114 §4.6
        if kind not in (h3.CONTROL_STREAM, h3.ENCODER_STREAM, h3.DECODER_STREAM):
            if not end:
                # RFC 9114 §6.2.3: unknown types are allowed. What comes later must not be read as a type.
                if before != _UNKNOWN:
                    self._quic.stop_stream(stream_id, h3.H3_STREAM_CREATION_ERROR)
                self._untyped[stream_id] = _UNKNOWN
            return None
        if kind in self._critical.values():
            raise H3Error(h3.H3_STREAM_CREATION_ERROR, "a second control or QPACK stream")  # RFC 9114 §6.2.1
        self._critical[stream_id] = kind
        return kind, data[position:]

    def on_reset(self, stream_id: int) -> None:
        """The peer has reset a stream.

        :raises H3Error: if it must not.
        """
        if stream_id in self._critical:
            raise H3Error(h3.H3_CLOSED_CRITICAL_STREAM, "a control or QPACK stream was reset")
        self._untyped.pop(stream_id, None)
