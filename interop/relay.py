"""A path between client and server in user space: the simulator's scenarios, and a capture of what crossed.

The simulator puts client and server on two ends of one link; here both are on the loopback, and a thread relays every
datagram. A link has a bandwidth, a delay and a queue that overflows (``simple-p2p``), and perhaps a rival for all that;
on the way a datagram can be lost or corrupted at random (``drop-rate``, ``corrupt-rate``; ``burst`` bounds how many in
a row), or by its number (``droplist``), or because the path is dark (``blackhole``); and the relay can become another
port or another address in the server's eyes (``rebind``). ECN marks pass through.

Every datagram is recorded where it entered the link, as the capture on its sender's side would have it, with whether
it came out at the other end: what is asserted is asserted on that (`capture.py`), not on what client or server say.
"""

from __future__ import annotations

import heapq
import math
import random
import select
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any

from tests.support.loopback import overhear, take_apart

Address = tuple[Any, ...]

#: What a datagram costs on a wire besides its payload: IPv4, UDP and PPP headers, as in the simulator.
_HEADERS = 30
#: And the largest payload that fits: the loopback would let a server probe for more than any real path has.
_LARGEST = 1500 - 28
#: linux/in.h, linux/in6.h.
_IP_RECVTOS, _IPV6_RECVTCLASS, _IPV6_TCLASS = 13, 66, 67
#: linux/socket.h, linux/if_packet.h.
_SOL_PACKET, _PACKET_VNET_HDR = 263, 15
#: Seconds after which a rival that hears nothing sends again (RFC 6298 §2.4).
_RTO = 1.0
#: linux/virtio_net.h: flags, type of segmentation, header length, segment size, checksum's start and offset.
_VIRTIO_HEADER = struct.Struct("=BBHHHH")


@dataclass(frozen=True)
class Direction:
    """What happens to datagrams one way.

    :ivar loss, corruption: probabilities; ``burst`` in a row at most.
    :ivar drops: numbers of the datagrams that are lost, from 1.
    """

    loss: float = 0.0
    corruption: float = 0.0
    burst: int = 3
    drops: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Scenario:
    """The path.

    :ivar delay: seconds, one way.
    :ivar bandwidth: bits per second, each way; ``None`` for no limit.
    :ivar queue: datagrams that wait for the link at most.
    :ivar dark: ``(on, off)``: so many seconds of light, then so many of darkness, and so on.
    :ivar rebind: ``(first, every)``: seconds until the client's side is seen from another port; ``rebindings`` times at
        most.
    :ivar rebind_address: and from another address.
    :ivar rival: a TCP bulk transfer to the client shares the link.
    :ivar seed: of all chance.
    """

    delay: float = 0.0
    bandwidth: float | None = None
    queue: int = 25
    to_server: Direction = Direction()
    to_client: Direction = Direction()
    dark: tuple[float, float] | None = None
    rebind: tuple[float, float] | None = None
    rebindings: float = math.inf
    rebind_address: bool = False
    rival: bool = False
    seed: int = 1


@dataclass
class Datagram:
    """One that entered the link.

    :ivar at: seconds since the relay began; ``arrived``: when it came out, ``None`` if it never did.
    :ivar client: the client's address; ``front``: which of the server's addresses it spoke to.
    :ivar seen_as: how the server sees the client.
    :ivar ecn: the two bits of RFC 3168.
    """

    at: float
    from_client: bool
    data: bytes
    client: Address
    front: Address
    seen_as: Address
    ecn: int
    arrived: float | None = None


@dataclass
class _Way:
    """One direction of the link, at work."""

    rules: Direction
    chance: random.Random
    free_at: float = 0.0
    waiting: list[float] = field(default_factory=list)
    count: int = 0
    lost: int = 0
    corrupted: int = 0

    def spoil(self, data: bytes) -> bytes | None:
        """What becomes of a datagram; ``None``: it is lost."""
        rules = self.rules
        self.count += 1
        if self.count in rules.drops:
            return None
        if self.lost < rules.burst and self.chance.random() < rules.loss:
            self.lost += 1
            return None
        self.lost = 0
        if self.corrupted < rules.burst and self.chance.random() < rules.corruption:
            self.corrupted += 1
            place = self.chance.randrange(len(data))
            return data[:place] + bytes([data[place] ^ self.chance.randrange(1, 256)]) + data[place + 1 :]
        self.corrupted = 0
        return data

    def leaves_at(self, size: int, now: float, scenario: Scenario) -> float | None:
        """When a datagram is through; ``None``: the queue is full."""
        if scenario.bandwidth is None:
            return now + scenario.delay
        self.waiting = [at for at in self.waiting if at > now]
        if len(self.waiting) > scenario.queue:
            return None
        self.free_at = max(self.free_at, now) + (size + _HEADERS) * 8 / scenario.bandwidth
        self.waiting.append(self.free_at)
        return self.free_at + scenario.delay


class _Rival:
    """A bulk transfer by TCP, as far as the link can tell: segments that take their turn, and Reno's window (RFC 5681).

    A segment that finds the queue full is known at once to be lost, which a real one learns an RTT later.

    :ivar sent: segments that the link took.
    :ivar in_flight: those whose ACK is not here yet.
    """

    SEGMENT = 1500 - _HEADERS

    def __init__(self) -> None:
        self.sent = 0
        self._window = 10.0
        self._threshold = math.inf
        self.in_flight = 0
        self._recovered_at = 0.0

    def acknowledged(self) -> None:
        """A segment arrived, and so did its ACK."""
        self.in_flight -= 1
        self._window += 1 if self._window < self._threshold else 1 / self._window

    def send(self, way: _Way, now: float, scenario: Scenario) -> list[float]:
        """Fill the window: when each segment's ACK will be here."""
        acks: list[float] = []
        while self.in_flight < int(self._window):
            arrives = way.leaves_at(self.SEGMENT, now, scenario)
            if arrives is None:
                if now >= self._recovered_at:
                    self._window = self._threshold = max(self._window / 2, 2.0)
                    self._recovered_at = max(way.free_at, now) + 2 * scenario.delay
                break
            self.in_flight += 1
            acks.append(arrives + scenario.delay)
        self.sent += len(acks)
        return acks


class Relay:
    """The path: a context manager.

    :param targets: the server's addresses; each gets a front of ours in its stead, see :attr:`fronts`.
    :param beside: a UDP port of the loopback, not used yet, whose datagrams are recorded too. This takes root.
    :ivar capture: what entered the link, in order.
    :ivar rival: who shares it, if anybody does.
    """

    def __init__(self, targets: Sequence[Address], scenario: Scenario, *, beside: int | None = None) -> None:
        self.capture: list[Datagram] = []
        self._scenario = scenario
        self._host: str = targets[0][0]
        self._targets = {}
        for target in targets:
            front = _bound(self._host)
            self._targets[front] = target
        self.fronts: list[Address] = [front.getsockname() for front in self._targets]
        self._backs: dict[tuple[socket.socket, Address], socket.socket] = {}
        self._owners: dict[socket.socket, tuple[socket.socket, Address]] = {}
        self._retired: list[socket.socket] = []
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._events = 0
        self.rival = _Rival() if scenario.rival else None
        self._ways = [
            _Way(rules, random.Random(f"{scenario.seed} {name}"))
            for name, rules in (("up", scenario.to_server), ("down", scenario.to_client))
        ]
        self._beside = beside
        self._overheard: socket.socket | None = None
        if beside is not None:
            self._overheard = overhear(beside)
            self._overheard.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        self._rebound = 0
        self._began = monotonic()
        self._first: float | None = None  # when the first datagram came
        self._wake, self._woken = socket.socketpair()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="relay", daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._wake.close()
        self._thread.join()
        if self._overheard is not None:
            self._overheard.close()
        for sock in (self._woken, *self._targets, *self._owners, *self._retired):
            sock.close()
        if self._failure is not None and error is None:
            raise self._failure

    def _main(self) -> None:
        try:
            while self._once():
                pass
        except BaseException as error:  # noqa: BLE001 - raised by __exit__, in the thread that can tell
            self._failure = error

    def _once(self) -> bool:
        now = monotonic()
        timeout = self._due[0][0] - now if self._due else None
        if self._scenario.rebind is not None and self._first is not None:
            timeout = min(timeout if timeout is not None else 60.0, self._rebind_at() - now)
        readable = [self._woken, *self._targets, *self._owners, *filter(None, [self._overheard])]
        ready, _, _ = select.select(readable, [], [], None if timeout is None else max(0.0, timeout))
        if self._woken in ready:
            return False
        now = monotonic()
        if self._scenario.rebind is not None and self._first is not None and now >= self._rebind_at():
            self._rebind()
        for sock in ready:
            if sock in self._targets:
                self._read_front(sock)
            elif sock in self._owners:
                self._read_back(sock)
            elif sock is self._overheard:
                self._listen_beside(sock)
        now = monotonic()
        while self._due and self._due[0][0] <= now:
            heapq.heappop(self._due)[2]()
        return True

    def _later(self, at: float, do: Callable[[], None]) -> None:
        self._events += 1
        heapq.heappush(self._due, (at, self._events, do))

    def _arrive(self, out: socket.socket, data: bytes, address: Address | None, record: Datagram) -> None:
        record.arrived = monotonic() - self._began
        _send(out, data, address, record.ecn)

    def _rival_sends(self, rival: _Rival) -> None:
        now = monotonic()
        for at in rival.send(self._ways[1], now, self._scenario):
            self._later(at, partial(self._rival_hears, rival))
        if not rival.in_flight:  # all were lost
            self._later(now + _RTO, partial(self._rival_sends, rival))

    def _rival_hears(self, rival: _Rival) -> None:
        rival.acknowledged()
        self._rival_sends(rival)

    def _read_front(self, front: socket.socket) -> None:
        for data, ecn, client in _received(front):
            if self._first is None:
                self._first = monotonic()
                if self.rival is not None:
                    self._rival_sends(self.rival)
            back = self._backs.get((front, client))
            if back is None:
                back = self._open_back(front, client)
            self._pass_on(True, data, ecn, (front, client), back, None)

    def _read_back(self, back: socket.socket) -> None:
        front, client = self._owners[back]
        for data, ecn, _ in _received(back):
            self._pass_on(False, data, ecn, (front, client), front, client)

    def _listen_beside(self, overheard: socket.socket) -> None:
        raw = overheard.recv(_VIRTIO_HEADER.size + 65535)
        _, _, _, segment, _, _ = _VIRTIO_HEADER.unpack_from(raw)
        crossed = take_apart(raw[_VIRTIO_HEADER.size :])
        if crossed is None or crossed.protocol != socket.IPPROTO_UDP:
            return
        now = monotonic() - self._began
        from_client = crossed.destination[1] == self._beside
        client, front = (crossed.source, crossed.destination)[:: 1 if from_client else -1]
        payload = crossed.data[8:]
        step = segment or max(len(payload), 1)  # datagrams that were sent together cross the loopback as one
        for start in range(0, len(payload), step):
            data = payload[start : start + step]
            self.capture.append(Datagram(now, from_client, data, client, front, client, crossed.ecn, arrived=now))

    def _pass_on(
        self,
        from_client: bool,
        data: bytes,
        ecn: int,
        flow: tuple[socket.socket, Address],
        out: socket.socket,
        address: Address | None,
    ) -> None:
        now = monotonic()
        seen_as = self._backs[flow].getsockname()
        record = Datagram(now - self._began, from_client, data, flow[1], flow[0].getsockname(), seen_as, ecn)
        self.capture.append(record)
        way = self._ways[0 if from_client else 1]
        spoilt = way.spoil(data)
        if spoilt is None or len(data) > _LARGEST or self._dark(now):
            return
        due = way.leaves_at(len(data), now, self._scenario)
        if due is not None:
            self._later(due, partial(self._arrive, out, spoilt, address, record))

    def _dark(self, now: float) -> bool:
        if self._scenario.dark is None or self._first is None:
            return False
        on, off = self._scenario.dark
        return (now - self._first) % (on + off) > on

    def _rebind_at(self) -> float:
        assert self._scenario.rebind is not None
        assert self._first is not None
        if self._rebound >= self._scenario.rebindings:
            return math.inf
        first, every = self._scenario.rebind
        return self._first + first + self._rebound * every

    def _rebind(self) -> None:
        self._rebound += 1
        for (front, client), back in list(self._backs.items()):
            del self._owners[back]
            self._retired.append(back)  # bound still, so that what comes to it is lost, and not refused
            self._open_back(front, client)

    def _open_back(self, front: socket.socket, client: Address) -> socket.socket:
        host = self._host
        if self._scenario.rebind_address and self._rebound and ":" not in host:
            host = f"127.0.0.{1 + self._rebound}"
        back = _bound(host)
        back.connect(self._targets[front])
        self._backs[front, client] = back
        self._owners[back] = (front, client)
        return back


def _bound(host: str) -> socket.socket:
    v6 = ":" in host
    sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    if v6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVTCLASS, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)
    sock.bind((host, 0))
    return sock


def _received(sock: socket.socket) -> list[tuple[bytes, int, Address]]:
    out: list[tuple[bytes, int, Address]] = []
    while len(out) < 64:
        try:
            data, ancillary, _, address = sock.recvmsg(65535, 64)
        except BlockingIOError:
            break
        except ConnectionRefusedError:
            continue  # the server is not there (yet): as good as lost
        out.append((data, ancillary[0][2][0] & 3 if ancillary else 0, address))
    return out


def _send(sock: socket.socket, data: bytes, address: Address | None, ecn: int) -> None:
    if sock.family == socket.AF_INET6:
        mark = (socket.IPPROTO_IPV6, _IPV6_TCLASS, struct.pack("=i", ecn))
    else:
        mark = (socket.IPPROTO_IP, socket.IP_TOS, struct.pack("=i", ecn))
    try:
        if address is None:
            sock.sendmsg([data], [mark])
        else:
            sock.sendmsg([data], [mark], 0, address)
    except (BlockingIOError, ConnectionRefusedError):
        return  # one more that is lost
