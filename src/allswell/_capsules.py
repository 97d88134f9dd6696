"""HTTP datagrams as capsules on a stream (RFC 9297 §3), and UDP payloads as HTTP datagrams (RFC 9298 §5). No I/O."""

from __future__ import annotations

from allswell._quic import varint

#: The bytes of the largest UDP payload that may be sent, and that is accepted (RFC 9298 §5).
LARGEST_UDP = 65527
#: The bytes of the largest HTTP datagram that is accepted in a capsule: a context id and a UDP payload.
LARGEST = LARGEST_UDP + 8

_DATAGRAM = 0  # the capsule type (RFC 9297 §3.5)
_UDP = 0  # the context id of UDP payloads (RFC 9298 §5)
_UDP_PREFIX = b"\0"
#: How many capsules one call of :meth:`CapsuleReader.take` reads at most.
_CAPSULES = 256


class DatagramTooLargeError(Exception):
    """The peer sent a larger datagram than :data:`LARGEST`, or a larger UDP payload than :data:`LARGEST_UDP`.

    :ivar size: its bytes.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class CapsuleReader:
    """Takes the datagrams out of a stream of capsules. It keeps the beginning of at most one.

    Capsules of other types are skipped, however long they are (RFC 9297 §3.2).

    :ivar more: whether another call of :meth:`take` may find more datagrams in what came.
    """

    __slots__ = ("_received", "_skip", "more")

    def __init__(self) -> None:
        self.more = False
        self._received = bytearray()
        self._skip = 0  # the bytes still to come of a capsule that is skipped

    @property
    def between_capsules(self) -> bool:
        """Whether the stream may end here (RFC 9297 §3.3)."""
        return not self._received and not self._skip

    def feed(self, data: bytes | memoryview) -> None:
        """Add bytes of the stream."""
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        self._received += data[skipped:]
        self.more = True

    def take(self) -> list[bytes]:
        """Return the datagrams that are complete, from a limited number of capsules.

        :raises DatagramTooLargeError: if the next datagram is too large. Its content is not read.
        """
        received, datagrams, start = self._received, list[bytes](), 0
        self.more = False
        capsules = 0
        while True:
            if capsules == _CAPSULES:
                self.more = True
                break
            capsules += 1
            try:
                kind, position = varint.decode(received, start)
                size, position = varint.decode(received, position)
            except IndexError:  # it is not complete
                break
            end = position + size
            if kind != _DATAGRAM:
                if end > len(received):
                    self._skip = end - len(received)
                    start = len(received)
                    break
            elif size > LARGEST:
                if not datagrams:
                    raise DatagramTooLargeError(size)
                self.more = True  # the caller first gets the datagrams before it
                break
            elif end > len(received):
                break
            else:
                datagrams.append(bytes(received[position:end]))
            start = end
        del received[:start]
        return datagrams


def capsule(datagram: bytes) -> bytes:
    """A datagram as a capsule."""
    return b"\0" + varint.encode(len(datagram)) + datagram


def from_udp(payload: bytes) -> bytes:
    """A UDP payload as an HTTP datagram."""
    return _UDP_PREFIX + payload


def to_udp(datagram: bytes) -> bytes | None:
    """The UDP payload of an HTTP datagram; ``None`` if it has another context id, or none (RFC 9298 §4).

    :raises DatagramTooLargeError: if the payload is too large. The stream must be aborted then (RFC 9298 §5).
    """
    try:
        context, position = varint.decode(datagram, 0)
    except IndexError:
        return None
    if context != _UDP:
        return None
    if len(datagram) - position > LARGEST_UDP:
        raise DatagramTooLargeError(len(datagram))
    return datagram[position:]
