"""What really crossed the loopback interface: the headers of every packet to and from one port.

The kernel shows them to a socket (`loopback.py`; :data:`needs_capture` says where), which a thread reads. They are
recorded in the order in which the kernel delivered them, with the kernel's own time stamps::

    with capture(peer.port) as seen:
        ...
        seen.settle()
    assert not seen.any_rst()

Packets reach the thread after the sockets they are for, so before anything is asserted it must be sure that nothing is
on its way. Hence :meth:`Capture.sync`: it sends a marker, a datagram to a socket of the capture's own, and waits until
the thread has read it; the kernel keeps the order, so what crossed before the marker is recorded by then. No sleeping.

A client that dials ``localhost`` may try ``::1`` first, where a peer on 127.0.0.1 does not listen: that refusal is RST
too. Give ``host`` to see one address only.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.support.loopback import Crossed, capture_available, overhear, take_apart

_SO_TIMESTAMPNS = 35
_MARKERS = 5  # of those that tell that all is there, when they get lost
_HEADERS = 256  # bytes of each packet that are looked at: Ethernet 14, IP at most 60, TCP at most 60
_FLAGS = {0x01: "FIN", 0x02: "SYN", 0x04: "RST", 0x08: "PSH", 0x10: "ACK"}


@dataclass(frozen=True)
class Packet:
    """One packet on the wire.

    :ivar time: when the kernel saw it, in seconds of the wall clock.
    :ivar size: bytes of payload (of TCP or UDP).
    :ivar flags: of TCP: ``FIN``, ``SYN``, ``RST``, ``PSH``, ``ACK``; empty for UDP.
    :ivar seq, ack: of TCP, as they stand on the wire; 0 for UDP.
    :ivar from_client: whether it was sent to the captured port, not from it.
    """

    time: float
    protocol: str
    source: int
    destination: int
    size: int
    flags: frozenset[str]
    seq: int
    ack: int
    from_client: bool

    @property
    def client(self) -> int:
        """The client's port: it tells one connection from another."""
        return self.source if self.from_client else self.destination

    def __str__(self) -> str:
        arrow = "->" if self.from_client else "<-"
        return f"{self.time:.6f} {self.protocol} {self.client} {arrow} {'+'.join(sorted(self.flags))} {self.size} B"


def _packet(crossed: Crossed, port: int, at: float) -> Packet:
    source, destination = crossed.source[1], crossed.destination[1]
    if crossed.protocol == socket.IPPROTO_UDP:  # RFC 768
        flags, seq, ack, header, name = 0, 0, 0, 8, "udp"
    else:  # RFC 9293, 3.1
        seq, ack, offset, flags = struct.unpack_from("!IIBB", crossed.data, 4)
        header, name = 4 * (offset >> 4), "tcp"
    words = frozenset(word for bit, word in _FLAGS.items() if flags & bit)
    return Packet(at, name, source, destination, crossed.size - header, words, seq, ack, destination == port)


def endings(packets: Iterable[Packet]) -> list[tuple[str, Packet]]:
    """Each FIN and RST of TCP, in order, with its packet.

    A RST is left out if it says nothing about the connection's end: all was sent, acknowledged and over, and one side's
    kernel repeats a packet because the acknowledgement was late (RFC 8985, 7: a tail loss probe). No socket is left for
    it, so the other kernel answers with RST.
    """
    found: list[tuple[str, Packet]] = []
    connections: dict[int, _Heard] = {}
    for packet in packets:
        if packet.protocol != "tcp":
            continue
        if packet.flags == {"SYN"} or packet.client not in connections:
            connections[packet.client] = _Heard()
        heard = connections[packet.client]
        if "FIN" in packet.flags:
            found.append(("FIN", packet))
        if "RST" in packet.flags and not heard.answers_a_repeat(packet):
            found.append(("RST", packet))
        heard.add(packet)
    return found


class _Heard:
    """What each side of a TCP connection has acknowledged, and whether the other has repeated some of that."""

    def __init__(self) -> None:
        self._acknowledged: dict[bool, int] = {}  # by whether the client did
        self._fins: dict[bool, int] = {}  # by whether the client's: the number that acknowledges it
        self._repeats: dict[bool, bool] = {}  # by whether the client's: its latest was acknowledged before

    def add(self, packet: Packet) -> None:
        side, end = packet.from_client, (packet.seq + packet.size + ("FIN" in packet.flags)) % 2**32
        acknowledged = self._acknowledged.get(not side)
        self._repeats[side] = end != packet.seq and acknowledged is not None and not _before(acknowledged, end)
        if "FIN" in packet.flags:
            self._fins[side] = end
        if "ACK" in packet.flags and not _before(packet.ack, self._acknowledged.get(side, packet.ack)):
            self._acknowledged[side] = packet.ack  # (a repeat may have been made before the latest was heard)

    def answers_a_repeat(self, rst: Packet) -> bool:
        over = all(self._fins.get(not side) == self._acknowledged.get(side, -1) for side in (True, False))
        return over and self._repeats.get(not rst.from_client, False)


def _before(one: int, other: int) -> bool:
    """Whether a number of a sequence comes before another (RFC 9293, 3.4)."""
    return 0 < (other - one) % 2**32 < 2**31


class Capture:
    """The packets of one port so far. Use :func:`capture`.

    TCP connections that began before it are left out: of what an earlier test left behind, the last RST may still come.
    """

    def __init__(self, port: int, host: str | None) -> None:
        self.port = port
        self.host = host
        self._packets: list[Packet] = []
        self._begun: set[int] = set()  # the client ports whose SYN was seen
        self._changed = threading.Condition()
        self._marks_sent = self._marks_seen = 0
        self._marker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._marker.bind(("127.0.0.1", 0))
        self._mark_port: int = self._marker.getsockname()[1]
        self._raw = overhear(port, self._mark_port)
        self._raw.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._stopping = False
        self._thread = threading.Thread(target=self._read, name="capture", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        space = socket.CMSG_SPACE(16)
        while not self._stopping:
            frame, ancillary, _, _ = self._raw.recvmsg(_HEADERS, space)
            at = time.time()
            for _, _, data in ancillary:
                seconds, nanoseconds = struct.unpack("@ll", data)
                at = seconds + nanoseconds / 1e9
            crossed = take_apart(frame)
            if crossed is None:
                continue
            with self._changed:
                if self.port in (crossed.source[1], crossed.destination[1]):
                    if self.host in (None, crossed.destination[0]):
                        self._record(_packet(crossed, self.port, at))
                elif crossed.protocol == socket.IPPROTO_UDP:
                    self._marks_seen = max(self._marks_seen, crossed.size - 8)
                self._changed.notify_all()

    def _record(self, packet: Packet) -> None:
        if "SYN" in packet.flags and packet.from_client:
            self._begun.add(packet.client)
        if packet.protocol != "tcp" or packet.client in self._begun:
            self._packets.append(packet)

    # --- Being sure that all is there.

    def sync(self, timeout: float = 30.0) -> None:
        """Block until everything that has crossed the interface before this call is recorded.

        :raises TimeoutError: the capture itself is broken.
        """
        with self._changed:
            self._marks_sent += 1
            mark = self._marks_sent
            for _ in range(_MARKERS):
                # Again where it was lost: a busy machine may fill the capture's buffer, and the last to come is this.
                self._marker.sendto(bytes(mark), ("127.0.0.1", self._mark_port))
                if self._changed.wait_for(lambda: self._marks_seen >= mark, timeout / _MARKERS):
                    return
            raise TimeoutError("the capture lost its own marker")

    def settle(self, timeout: float = 30.0, connections: int = 1) -> None:
        """Block until at least that many TCP connections were seen and each is over: FIN from both sides, both
        acknowledged, or RST; then :meth:`sync`, for a RST that answers the last of them.

        :raises TimeoutError: with the packets seen.
        """

        def over() -> bool:
            clients = {packet.client for packet in self._packets if packet.protocol == "tcp"}
            return len(clients) >= connections and all(map(self._over, clients))

        with self._changed:
            if not self._changed.wait_for(over, timeout):
                raise TimeoutError(f"not over within {timeout} s:\n{self}")
        self.sync()

    def _over(self, client: int) -> bool:
        """Whether that connection has ended. It looks at the last one of a port that was used twice."""
        fins: dict[bool, int] = {}  # by direction: the number that acknowledges it
        acknowledged: set[bool] = set()
        over = False
        for packet in self._packets:
            if packet.client != client or packet.protocol != "tcp":
                continue
            if packet.flags == {"SYN"}:
                fins, acknowledged, over = {}, set(), False
            if "RST" in packet.flags:
                over = True
            if "FIN" in packet.flags:
                fins[packet.from_client] = (packet.seq + packet.size + 1) % 2**32
            if "ACK" in packet.flags and fins.get(not packet.from_client) == packet.ack:
                acknowledged.add(packet.from_client)
        return over or len(acknowledged) == 2

    # --- What was seen.

    @property
    def packets(self) -> list[Packet]:
        """All so far, in order."""
        with self._changed:
            return list(self._packets)

    def flags(self, *, from_client: bool, client: int | None = None) -> list[str]:
        """The endings that one side sent, in order: ``["FIN"]``, ``["FIN", "RST"]``, …

        :param client: only of the connection from that port.
        """
        return [
            flag
            for flag, packet in endings(self.packets)
            if packet.from_client is from_client and client in (None, packet.client)
        ]

    def any_rst(self) -> bool:
        """Whether either side sent a RST (as :func:`endings` counts them)."""
        return any(flag == "RST" for flag, _ in endings(self.packets))

    def first(self, flag: str, *, from_client: bool) -> Packet:
        """The first packet from that side with that flag.

        :raises LookupError: there is none; with the packets seen.
        """
        for packet in self.packets:
            if flag in packet.flags and packet.from_client is from_client:
                return packet
        raise LookupError(f"no {flag} from the {'client' if from_client else 'server'}:\n{self}")

    def clients(self) -> list[int]:
        """The clients' ports, in the order of their first packets: one for each connection."""
        return list(dict.fromkeys(packet.client for packet in self.packets))

    def __str__(self) -> str:
        return "\n".join(map(str, self.packets)) or "(no packet)"

    def stop(self) -> None:
        """End the thread and close the sockets."""
        self._stopping = True
        self._marker.sendto(b"", ("127.0.0.1", self._mark_port))  # something to read, so that it looks
        self._thread.join(30)
        self._raw.close()
        self._marker.close()


@contextmanager
def capture(port: int, host: str | None = None) -> Iterator[Capture]:
    """Capture that port on the loopback interface until the block is left.

    :param host: only packets to this address; on the loopback interface client and server have the same one.
    """
    running = Capture(port, host)
    try:
        yield running
    finally:
        running.stop()


#: For tests that capture: ``@needs_capture``.
needs_capture = pytest.mark.skipif(not capture_available(), reason="capturing packets needs Linux and CAP_NET_RAW")
